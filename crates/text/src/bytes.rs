//! `parse_bytes`: numbers of bytes with a unit.

/// The number of bytes of a text such as `64KiB`.
///
/// # Errors
/// When it is no such number.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return Err("expected a number of bytes like 65536, 64KiB or 1MiB".to_owned()),
    };
    let number: usize = number
        .parse()
        .map_err(|_| "expected a number of bytes".to_owned())?;
    number
        .checked_mul(factor)
        .ok_or_else(|| "too many bytes".to_owned())
}
