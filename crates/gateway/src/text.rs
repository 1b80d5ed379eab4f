//! Lists as they are written in flags.

/// The parts of a list with commas.
pub(crate) fn list(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split(',').map(str::trim);
    parts.filter(|part| !part.is_empty())
}
