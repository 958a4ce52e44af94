//! The option fields of a request (RFC 2132 section 2, RFC 3396): walked here, because dhcproto does
//! not look into the header fields that option 52 makes part of them. Pure.

/// Offsets of the header fields that may hold options (RFC 2131 section 2).
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
/// The options proper begin after the cookie.
const OPTIONS: usize = 240;

/// Calls `see` with each option of a message of at least 240 bytes: those of the options field, then
/// those of `file` and `sname` if option 52 says that these hold some. An option that is split is
/// seen in parts, in their order, for the reader to put together (RFC 3396 section 7). A
/// field that is cut off ends at its last whole option.
pub(crate) fn each<'a>(message: &'a [u8], mut see: impl FnMut(u8, &'a [u8])) {
    let Some(field) = message.get(OPTIONS..) else { return };
    let mut overload = 0;
    walk(field, |code, data| match (code, data) {
        (52, [value]) => overload = *value,
        (52, _) => {}
        _ => see(code, data),
    });
    // Options 52 and 53 in an overloaded field are no longer heard: a message has one type.
    let mut inner = |code, data| {
        if !matches!(code, 52 | 53) {
            see(code, data);
        }
    };
    if overload & 1 != 0 {
        walk(&message[FILE], &mut inner);
    }
    if overload & 2 != 0 {
        walk(&message[SNAME], &mut inner);
    }
}

fn walk<'a>(mut field: &'a [u8], mut see: impl FnMut(u8, &'a [u8])) {
    while let Some((&code, rest)) = field.split_first() {
        match code {
            0 => field = rest,
            255 => return,
            _ => {
                let Some((&length, rest)) = rest.split_first() else { return };
                let Some((data, rest)) = rest.split_at_checked(length.into()) else { return };
                see(code, data);
                field = rest;
            }
        }
    }
}

/// The relay agent's sub-options (RFC 3046 section 2.0), each as it came first.
pub(crate) fn sub_option(relay: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = relay;
    while let [code, length, tail @ ..] = rest {
        let (data, tail) = tail.split_at_checked((*length).into())?;
        if *code == wanted {
            return Some(data);
        }
        rest = tail;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(message: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut list = Vec::new();
        each(message, |code, data| list.push((code, data.to_vec())));
        list
    }

    fn message(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; OPTIONS];
        bytes.extend_from_slice(options);
        bytes
    }

    #[test]
    fn overloaded_fields_follow_the_options_field() {
        let mut bytes = message(&[53, 1, 1, 52, 1, 3, 12, 1, b'a', 255]);
        bytes[108..113].copy_from_slice(&[60, 2, b'P', b'X', 255]);
        bytes[44..50].copy_from_slice(&[0, 60, 1, b'E', 53, 1]);
        let wanted =
            [(53, vec![1]), (12, b"a".to_vec()), (60, b"PX".to_vec()), (60, b"E".to_vec())];
        assert_eq!(seen(&bytes), wanted);
        // Without option 52 these fields are what their names say.
        bytes[245] = 0;
        assert_eq!(seen(&bytes), wanted[..2]);
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        assert_eq!(seen(&message(&[1, 4, 255, 255])), []);
        assert_eq!(seen(&message(&[53, 1, 1, 60])), [(53, vec![1])]);
        assert_eq!(seen(&message(&[255, 53, 1, 1])), []);
        assert_eq!(seen(&[0; 100]), []);
        assert_eq!(
            sub_option(&[1, 3, b'a', b'b', b'c', 5, 4, 10, 0, 0, 1], 5),
            Some(&[10, 0, 0, 1][..])
        );
        assert_eq!(sub_option(&[1, 9, b'a'], 1), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500), wanted in any::<u8>()) {
            let _ = seen(&bytes);
            let _ = sub_option(&bytes, wanted);
        }
    }
}
