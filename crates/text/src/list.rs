//! `list`: the parts of a list with commas.

/// The parts of a list with commas.
pub fn list(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split(',').map(str::trim);
    parts.filter(|part| !part.is_empty())
}
