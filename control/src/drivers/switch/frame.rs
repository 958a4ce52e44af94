//! Cuts a stream of JSON values, which OVSDB sends without any separator (RFC 7047 section 4),
//! into single ones by counting brackets outside strings.

/// Longest value that is accepted, in bytes.
pub const MAX_VALUE: usize = 16 << 20;

/// Not a stream of JSON objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A value is too long.
    #[error("a value is longer than {MAX_VALUE} bytes")]
    TooLong,
    /// Something else than an object.
    #[error("byte {0:#04x} where an object must begin")]
    NotAnObject(u8),
}

/// Bytes received and how far they are understood.
#[derive(Debug, Default)]
pub struct Framer {
    bytes: Vec<u8>,
    /// Bytes that the state below covers.
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Framer {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole value, if it is there.
    ///
    /// # Errors
    /// The stream is not what it should be; nothing after it can be trusted.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        while self.scanned < self.bytes.len() {
            let byte = self.bytes[self.scanned];
            self.scanned += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'{' | b'[' if self.depth > 0 || byte == b'{' => self.depth += 1,
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        let rest = self.bytes.split_off(self.scanned);
                        self.scanned = 0;
                        return Ok(Some(std::mem::replace(&mut self.bytes, rest)));
                    }
                }
                b'"' if self.depth > 0 => self.in_string = true,
                _ if self.depth > 0 || byte.is_ascii_whitespace() => {}
                _ => return Err(FrameError::NotAnObject(byte)),
            }
        }
        if self.bytes.len() > MAX_VALUE { Err(FrameError::TooLong) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_cut_wherever_the_stream_is() {
        let stream = br#"{"a":"}\"]"} {"b":[{}]}{"c"#;
        for cut in 0..stream.len() {
            let mut framer = Framer::default();
            let mut got = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                framer.push(part);
                while let Some(value) = framer.next().expect("valid") {
                    got.push(String::from_utf8(value).expect("text").trim().to_owned());
                }
            }
            assert_eq!(got, [r#"{"a":"}\"]"}"#, r#"{"b":[{}]}"#], "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_object_ends_the_stream() {
        let mut framer = Framer::default();
        framer.push(b"HTTP/1.1 400");
        assert_eq!(framer.next(), Err(FrameError::NotAnObject(b'H')));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8)) {
            let mut framer = Framer::default();
            'stream: for part in parts {
                framer.push(&part);
                loop {
                    match framer.next() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
            }
        }
    }
}
