//! Words as people write them: lists in flags and headers, and misspelled names.

mod list;
mod nearest;

pub use self::{list::list, nearest::nearest};
