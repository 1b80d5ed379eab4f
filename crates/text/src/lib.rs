//! Words as people write them: lists, times and sizes in flags and files, and misspelled names.

mod bytes;
mod list;
mod nearest;
mod time;

pub use self::{bytes::parse_bytes, list::list, nearest::nearest, time::Time};
