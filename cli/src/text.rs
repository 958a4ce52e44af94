//! Values as people read them.

/// `512 B`, `4.0 KiB`, `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// A share of 0 to 1 as `42%`; negative means that there is none.
pub fn share(share: f64) -> String {
    if share.is_finite() && share >= 0.0 {
        format!("{:.0}%", share * 100.0)
    } else {
        "-".to_owned()
    }
}

/// The text, or a dash.
pub fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// The first 12 characters of a version, which tell versions apart.
pub fn short_version(version: &str) -> String {
    or_dash(&version.chars().take(12).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_shares_are_short() {
        assert_eq!(
            (size(512), size(4096), size(u64::MAX)),
            ("512 B".to_owned(), "4.0 KiB".to_owned(), "16777216.0 TiB".to_owned())
        );
        assert_eq!(
            (share(0.415), share(-1.0), share(f64::NAN)),
            ("42%".to_owned(), "-".to_owned(), "-".to_owned())
        );
    }
}
