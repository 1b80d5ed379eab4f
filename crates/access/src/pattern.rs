//! `Patterns`: sets of channel names.

/// A pattern of names. `*` matches any run of characters, and any other character matches itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern(String);

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        // The first part always exists, but may be empty.
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty();
        };
        for part in parts {
            let Some(found) = rest.find(part) else {
                return false;
            };
            rest = &rest[found + part.len()..];
        }
        rest.ends_with(last)
    }
}

/// A set of channel names: explicit names, and all names that match a pattern. A pattern that begins with `!` excludes
/// its matches, at any position in the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    names: Vec<String>,
    allowed: Vec<Pattern>,
    excepted: Vec<Pattern>,
}

impl Patterns {
    /// The set of these patterns.
    pub fn new(patterns: impl IntoIterator<Item = String>) -> Self {
        let mut new = Self::default();
        for pattern in patterns {
            match pattern.strip_prefix('!') {
                Some(pattern) => new.excepted.push(Pattern(pattern.to_owned())),
                None => new.allowed.push(Pattern(pattern)),
            }
        }
        new
    }

    /// Exactly these names. `*` and `!` have no special meaning in them.
    pub fn of_names(names: Vec<String>) -> Self {
        Self {
            names,
            ..Self::default()
        }
    }

    /// Every name.
    pub fn every() -> Self {
        Self::new(["*".to_owned()])
    }

    /// The names and the patterns.
    pub fn into_parts(self) -> (Vec<String>, Vec<String>) {
        let allowed = self.allowed.into_iter().map(|Pattern(text)| text);
        let excepted = self.excepted.into_iter();
        let excepted = excepted.map(|Pattern(text)| format!("!{text}"));
        (self.names, allowed.chain(excepted).collect())
    }

    /// The set of which these are the parts.
    pub fn from_parts(names: Vec<String>, patterns: Vec<String>) -> Self {
        Self {
            names,
            ..Self::new(patterns)
        }
    }

    /// Bytes of its texts, with quotes and a comma for each.
    pub(crate) fn bytes(&self) -> usize {
        let patterns = self.allowed.iter().chain(&self.excepted);
        let texts = patterns.map(|Pattern(text)| text).chain(&self.names);
        texts.map(|text| text.len() + 3).sum()
    }

    /// Whether no name is in it.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.allowed.is_empty()
    }

    /// Whether a name is in it.
    pub fn matches(&self, name: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(name));
        (self.names.iter().any(|own| own == name) || any(&self.allowed)) && !any(&self.excepted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_run_of_characters() {
        let check = |pattern: &str, yes: &[&str], no: &[&str]| {
            let compiled = Pattern(pattern.to_owned());
            for name in yes {
                assert!(compiled.matches(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!compiled.matches(name), "{pattern} {name}");
            }
        };
        check("*", &["", "a", "a.b"], &[]);
        check(
            "chat.*",
            &["chat.", "chat.a", "chat.a.b"],
            &["chat", "achat.a", ""],
        );
        check("*.log", &[".log", "a.log", "a.log.log"], &["a.log.", "log"]);
        check(
            "a*b*c",
            &["abc", "a-b-c", "abbc", "abcbc"],
            &["ac", "ab", "acb", "abcd"],
        );
        // The two ends must not overlap.
        check("aba*aba", &["abaaba", "aba-aba"], &["aba", "ababa"]);
        check("a.b", &["a.b"], &["axb", "a.b.", ""]);
        check("", &[""], &["a"]);
        check("a?[b]%d", &["a?[b]%d"], &["axb1"]);
    }

    #[test]
    fn an_exclusion_applies_at_any_position() {
        for patterns in [["*", "!private.*"], ["!private.*", "*"]] {
            let patterns = Patterns::new(patterns.map(str::to_owned));
            assert!(patterns.matches("news") && patterns.matches("private"));
            assert!(!patterns.matches("private.a"));
        }
        let nothing = Patterns::new(["!a".to_owned()]);
        assert!(nothing.is_empty() && !nothing.matches("b"));
    }

    #[test]
    fn a_name_is_itself_and_no_pattern() {
        let names = Patterns::of_names(vec!["a*".to_owned(), "!b".to_owned()]);
        assert!(names.matches("a*") && names.matches("!b"));
        assert!(!names.matches("ab") && !names.matches("b"));
        let mixed = Patterns {
            names: vec!["*".to_owned()],
            ..Patterns::new(["!c.d", "c.*"].map(str::to_owned))
        };
        let (names, patterns) = mixed.clone().into_parts();
        assert_eq!(Patterns::from_parts(names, patterns), mixed);
    }
}
