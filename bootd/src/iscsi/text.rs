//! Text segments of login and text requests: `key=value` pairs with a zero byte after each
//! (RFC 7143 section 6.1).

/// Most bytes of a value that is looked at: a challenge of 1024 bytes in hex is the longest.
const MAX_VALUE: usize = 2 + 2 * 1024;

/// Text that is not a list of pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text is not a list of key=value pairs")]
pub(crate) struct InvalidText;

/// The pairs of a text segment, in order. A zero byte after the last may be missing.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<(&str, &str)>, InvalidText> {
    let text = std::str::from_utf8(bytes).map_err(|_| InvalidText)?;
    let mut pairs = Vec::new();
    for pair in text.split('\0').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(InvalidText)?;
        if key.is_empty() || key.len() > 63 || value.len() > MAX_VALUE {
            return Err(InvalidText);
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// A number in decimal or `0x` hex (RFC 7143 section 6.1).
pub(crate) fn number(value: &str) -> Option<u32> {
    let (digits, radix) = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (value, 10),
    };
    // Rust reads a sign, too.
    let plain = !digits.starts_with('+');
    plain.then(|| u32::from_str_radix(digits, radix).ok()).flatten()
}

/// Binary in `0x` hex or `0b` base64, of at most `max` bytes.
pub(crate) fn binary(value: &str, max: usize) -> Option<Vec<u8>> {
    let bytes = match value.get(..2)? {
        "0x" | "0X" => hex(&value[2..])?,
        "0b" | "0B" => base64(&value[2..])?,
        _ => return None,
    };
    (bytes.len() <= max).then_some(bytes)
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = digits.as_bytes().chunks_exact(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0);
    for c in text.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

/// Bytes as `0x` hex.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Pairs to be sent.
#[derive(Debug, Default)]
pub(crate) struct Answer(Vec<u8>);

impl Answer {
    pub fn push(&mut self, key: &str, value: impl std::fmt::Display) {
        self.0.extend_from_slice(format!("{key}={value}\0").as_bytes());
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    #[cfg(test)]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs_and_numbers_are_read() {
        assert_eq!(parse(b"A=1\0B=x=y\0"), Ok(vec![("A", "1"), ("B", "x=y")]));
        assert_eq!(parse(b"A=1"), Ok(vec![("A", "1")]));
        assert_eq!(parse(b"A"), Err(InvalidText));
        assert_eq!(parse(b"=1\0"), Err(InvalidText));
        assert_eq!(number("0x10"), Some(16));
        assert_eq!(number("8192"), Some(8192));
        for signed in ["-1", "+1", "0x+1", "0x-1"] {
            assert_eq!(number(signed), None, "{signed}");
        }
    }

    #[test]
    fn binary_is_read_in_both_forms() {
        assert_eq!(binary("0x0aFF", 4), Some(vec![0x0a, 0xff]));
        assert_eq!(binary("0bCv8=", 4), Some(vec![0x0a, 0xff]));
        assert_eq!(binary("0x0aff", 1), None);
        assert_eq!(binary("0a", 4), None);
        assert_eq!(binary(&to_hex(&[1, 2, 3]), 3), Some(vec![1, 2, 3]));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(pairs) = parse(&bytes) {
                for (_, value) in pairs {
                    let decoded = binary(value, 16);
                    prop_assert!(decoded.is_none_or(|bytes| bytes.len() <= 16));
                }
            }
        }
    }
}
