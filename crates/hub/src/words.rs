//! `words!`: enums of words, so that a metric with a word as its label has a list of all words.

/// Makes an enum whose values are words of labels, answers and events. Each value is in one list. A metric that takes
/// its labels from a list has exactly these labels, and has them from the start.
#[macro_export]
macro_rules! words {
    (
        $(#[$about:meta])*
        $visibility:vis enum $name:ident {
            $($list:ident { $($(#[$value_about:meta])* $value:ident = $word:expr,)* })*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visibility enum $name {
            $($($(#[$value_about])* $value,)*)*
        }

        impl $name {
            $(
                /// The values of this list.
                #[allow(dead_code, reason = "what is counted nowhere is in a list, too")]
                $visibility const $list: &'static [Self] = &[$(Self::$value,)*];
            )*

            /// The word. It is stable, even if other words change.
            #[must_use]
            $visibility fn as_str(self) -> &'static str {
                match self {
                    $($(Self::$value => $word,)*)*
                }
            }
        }
    };
}
