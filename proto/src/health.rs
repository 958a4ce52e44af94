//! Health checks: one rule of what they may be. Control reads them from blueprints, bootd passes
//! them on, the agent runs them and writes them into the balancer's configuration; what the first
//! accepts, the last must be able to run, or a whole role could not come into service.

use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::checked_toml::Table;
use crate::common;

/// Milliseconds between checks.
pub const HEALTH_INTERVAL_MS: RangeInclusive<u32> = 100..=600_000;

/// Milliseconds until one check counts as failed.
pub const HEALTH_TIMEOUT_MS: RangeInclusive<u32> = 50..=60_000;

/// Longest path, in bytes.
const MAX_PATH: usize = 256;

/// What is wrong with a health check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHealthCheck {
    /// Neither `NONE`, `TCP` nor `HTTP`.
    #[error("kind {0} is not known to this version")]
    Kind(i32),
    /// Outside 1..=65535.
    #[error("port {0} is not within 1 to 65535")]
    Port(u32),
    /// Not a [`HealthPath`].
    #[error(
        "path {0:?} must start with / and hold 1 to {MAX_PATH} letters, digits and / . _ - ~ ? & = + \
         , : @ %"
    )]
    Path(String),
    /// Outside [`HEALTH_INTERVAL_MS`].
    #[error(
        "interval_ms {0} is not within {low} to {high}",
        low = HEALTH_INTERVAL_MS.start(),
        high = HEALTH_INTERVAL_MS.end()
    )]
    Interval(u32),
    /// Outside [`HEALTH_TIMEOUT_MS`].
    #[error(
        "timeout_ms {0} is not within {low} to {high}",
        low = HEALTH_TIMEOUT_MS.start(),
        high = HEALTH_TIMEOUT_MS.end()
    )]
    Timeout(u32),
}

/// The path of an HTTP check, 1 to 256 bytes: an absolute one of characters that mean nothing in a
/// request line (RFC 9112 section 3) nor in a balancer's configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthPath(String);

impl HealthPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HealthPath {
    type Err = InvalidHealthCheck;

    fn from_str(s: &str) -> Result<Self, InvalidHealthCheck> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-~?&=+,:@%".contains(&b);
        if s.starts_with('/') && s.len() <= MAX_PATH && s.bytes().all(plain) {
            Ok(Self(s.to_owned()))
        } else {
            Err(InvalidHealthCheck::Path(s.chars().take(80).collect()))
        }
    }
}

impl From<HealthPath> for String {
    fn from(path: HealthPath) -> Self {
        path.0
    }
}

/// Reads the table `health = { kind, port, path, interval_ms, timeout_ms }` of a blueprint. What is
/// wrong with it becomes a fault of its file.
pub fn read_health(table: &mut Table<'_>) -> Option<common::HealthCheck> {
    use common::health_check::Kind;
    let kind = table.required::<String>("kind");
    let interval_ms = milliseconds(table, "interval_ms", HEALTH_INTERVAL_MS).unwrap_or(1000);
    let timeout_ms = milliseconds(table, "timeout_ms", HEALTH_TIMEOUT_MS).unwrap_or(900);
    let kind = kind?;
    let check = |kind: Kind, port, path| {
        Some(common::HealthCheck { kind: kind.into(), port, path, interval_ms, timeout_ms })
    };
    if kind == "none" {
        return check(Kind::None, 0, String::new());
    }
    let port = table.integer("port", 1..=65535).and_then(|port| u32::try_from(port).ok());
    match kind.as_str() {
        "tcp" => check(Kind::Tcp, port?, String::new()),
        "http" => check(Kind::Http, port?, table.required::<HealthPath>("path")?.into()),
        other => {
            let other: String = other.chars().take(32).collect();
            let message = format!("{other:?} is not a kind of check; these are: none, tcp, http");
            table.fault("kind", message);
            table.optional::<String>("path");
            None
        }
    }
}

fn milliseconds(table: &mut Table<'_>, key: &str, range: RangeInclusive<u32>) -> Option<u32> {
    let range = u64::from(*range.start())..=u64::from(*range.end());
    table.optional_integer(key, range).and_then(|number| u32::try_from(number).ok())
}

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthTarget {
    /// Nothing.
    None,
    /// A connection to this port.
    Tcp(u16),
    /// A GET of this path from this port.
    Http(u16, HealthPath),
}

impl TryFrom<&common::HealthCheck> for HealthTarget {
    type Error = InvalidHealthCheck;

    /// Checks all of the message; what a check of nothing says of port, path and times is ignored.
    fn try_from(given: &common::HealthCheck) -> Result<Self, InvalidHealthCheck> {
        use common::health_check::Kind;
        let port = || match u16::try_from(given.port) {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(InvalidHealthCheck::Port(given.port)),
        };
        let target = match Kind::try_from(given.kind) {
            Ok(Kind::Unspecified | Kind::None) => return Ok(Self::None),
            Ok(Kind::Tcp) => Self::Tcp(port()?),
            Ok(Kind::Http) => Self::Http(port()?, given.path.parse()?),
            Err(_) => return Err(InvalidHealthCheck::Kind(given.kind)),
        };
        if !HEALTH_INTERVAL_MS.contains(&given.interval_ms) {
            return Err(InvalidHealthCheck::Interval(given.interval_ms));
        }
        if !HEALTH_TIMEOUT_MS.contains(&given.timeout_ms) {
            return Err(InvalidHealthCheck::Timeout(given.timeout_ms));
        }
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::common::health_check::Kind;

    fn check(kind: Kind, port: u32, path: &str, interval_ms: u32, timeout_ms: u32) -> String {
        let path = path.to_owned();
        let given = common::HealthCheck { kind: kind.into(), port, path, interval_ms, timeout_ms };
        match HealthTarget::try_from(&given) {
            Ok(target) => format!("{target:?}"),
            Err(fault) => fault.to_string(),
        }
    }

    #[test]
    fn every_part_is_checked() {
        assert_eq!(check(Kind::Tcp, 8404, "", 100, 60_000), "Tcp(8404)");
        let whole = check(Kind::Http, 80, "/health?a=b&c=%20", 600_000, 50);
        assert_eq!(whole, "Http(80, HealthPath(\"/health?a=b&c=%20\"))");
        // Nothing to run, so nothing to be wrong.
        assert_eq!(check(Kind::None, 0, "", 0, 0), "None");
        assert_eq!(check(Kind::Unspecified, 70_000, ";", 1, 1), "None");
        for (fault, expected) in [
            (check(Kind::Tcp, 0, "", 1000, 900), "port 0 is not"),
            (check(Kind::Http, 65_536, "/", 1000, 900), "port 65536 is not"),
            (check(Kind::Http, 80, "health", 1000, 900), "path \"health\" must"),
            (check(Kind::Tcp, 80, "", 99, 900), "interval_ms 99 is not within 100 to 600000"),
            (check(Kind::Tcp, 80, "", 600_001, 900), "interval_ms 600001 is not"),
            (check(Kind::Tcp, 80, "", 1000, 49), "timeout_ms 49 is not within 50 to 60000"),
            (check(Kind::Http, 80, "/", 1000, 60_001), "timeout_ms 60001 is not"),
        ] {
            assert!(fault.starts_with(expected), "{fault}");
        }
        let odd = common::HealthCheck { kind: 77, ..Default::default() };
        assert_eq!(HealthTarget::try_from(&odd), Err(InvalidHealthCheck::Kind(77)));
    }

    #[test]
    fn paths_that_mean_more_than_a_path_are_refused() {
        let long = format!("/{}", "a".repeat(MAX_PATH));
        for bad in
            ["", "health", "/a b", "/a\r\nHost: x", "/\u{e4}", "/a;b", "/a#b", "/$a", "/\"", &long]
        {
            assert!(bad.parse::<HealthPath>().is_err(), "{bad:?} was accepted");
        }
        assert!(long[..MAX_PATH].parse::<HealthPath>().is_ok());
    }

    proptest! {
        #[test]
        fn no_message_breaks_it(
            kind in any::<i32>(), port in any::<u32>(), path in ".{0,30}", ms in any::<u32>(),
        ) {
            let given =
                common::HealthCheck { kind, port, path, interval_ms: ms, timeout_ms: ms };
            let _ = HealthTarget::try_from(&given);
        }
    }
}
