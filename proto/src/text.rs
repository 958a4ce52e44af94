//! Values as people read them.

use time::OffsetDateTime;
use time::macros::format_description;

/// The text without control characters, so that nothing from elsewhere moves the terminal's
/// cursor. Line breaks become `line_break`.
pub fn printable(text: &str, line_break: char) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => line_break,
            '\t' => ' ',
            c if c.is_control() => '?',
            c => c,
        })
        .collect()
}

/// `12s`, `4m10s`, `3h05m`, `2d04h`: two units at most.
pub fn age(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Milliseconds since the Unix epoch as `2026-11-23 08:30:01Z`.
pub fn instant(at_ms: u64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    let seconds = i64::try_from(at_ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|at| at.format(&format).ok())
        .unwrap_or_else(|| format!("{at_ms} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_at_most_two_units() {
        let cases = [
            (999, "0s"),
            (59_999, "59s"),
            (250_000, "4m10s"),
            (3_600_000, "1h00m"),
            (11_100_000, "3h05m"),
            (187_200_000, "2d04h"),
        ];
        for (milliseconds, expected) in cases {
            assert_eq!(age(milliseconds), expected);
        }
    }

    #[test]
    fn instants_are_short_and_never_wrong() {
        assert_eq!(instant(1_795_422_601_234), "2026-11-23 08:30:01Z");
        assert_eq!(instant(u64::MAX), format!("{} ms", u64::MAX));
    }

    #[test]
    fn control_characters_are_not_printed() {
        assert_eq!(printable("a\u{1b}[31m\nb\tc\r", ' '), "a?[31m b c?");
    }
}
