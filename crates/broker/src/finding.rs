//! `Finding`: one result of an examination, as `doctor` prints it.

use std::fmt::{self, Write as _};

/// How bad a finding is, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Neither good nor bad, for example the limits of the examination.
    Note,
    /// As it should be.
    Fine,
    /// It works, and could be better.
    Advice,
    /// It could not be examined.
    Unknown,
    /// It has to be corrected.
    Wrong,
}

/// The subject of an examination, and the result.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// The subject, in a word.
    pub what: &'static str,
    /// The result, and how to correct it.
    pub text: String,
}

impl Finding {
    /// A finding with this verdict.
    pub fn new(verdict: Verdict, what: &'static str, text: impl Into<String>) -> Self {
        Self {
            verdict,
            what,
            text: text.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Note => "note",
            Verdict::Fine => "ok",
            Verdict::Advice => "advice",
            Verdict::Unknown => "unknown",
            Verdict::Wrong => "WRONG",
        };
        write!(f, "{verdict:<7} {:<12} ", self.what)?;
        // The examined server supplies part of the text, so control characters are escaped before the terminal sees
        // them.
        for char in self.text.chars() {
            match char.is_control() {
                true => write!(f, "{}", char.escape_default())?,
                false => f.write_char(char)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_does_not_steer_the_terminal() {
        let text = "came \u{1b}]0;x\u{7}\r\nWRONG \u{9b}2J ü";
        let shown = Finding::new(Verdict::Wrong, "stream", text).to_string();
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert!(shown.ends_with("\\u{9b}2J ü"), "{shown}");
    }
}
