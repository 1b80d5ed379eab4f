//! `words!`: enums of words, so that whoever counts by a word has a list of all of them.

/// Makes an enum whose values are words, as they stand in labels, answers and events. Each value is in one list: a
/// metric that takes its labels from there has them from the start, and no others.
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

            /// The word, which stays the same when other words change.
            #[must_use]
            $visibility fn as_str(self) -> &'static str {
                match self {
                    $($(Self::$value => $word,)*)*
                }
            }
        }
    };
}
