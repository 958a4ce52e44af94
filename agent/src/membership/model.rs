//! A farm's membership after every part of it was checked: names and addresses from here on can
//! stand in files and commands.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use croft_proto::common::{self, member::State as WireState};
use croft_proto::{FarmName, HealthTarget, InvalidHealthCheck, MemberName, RoleName, TierName};
use serde::Serialize;

use crate::health::with_times;

/// More members or balances than a farm can have.
const MAX_ENTRIES: usize = 10_000;

/// Why a membership cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMembership {
    /// A name breaks its rules.
    #[error(transparent)]
    Name(#[from] croft_proto::InvalidName),
    /// Not an IPv4 address.
    #[error("member {member}: {given:?} is not an IPv4 address")]
    Address {
        /// Whose.
        member: MemberName,
        /// What stood there.
        given: String,
    },
    /// A state of a later version.
    #[error("member {0}: its state is not known to this version")]
    State(MemberName),
    /// Listed twice.
    #[error("member {0} is listed twice")]
    Twice(MemberName),
    /// Outside 1..=65535.
    #[error("balance: port {0} is not within 1 to 65535")]
    Port(u32),
    /// Two balances of one tier listen on one port.
    #[error("balance: tier {tier} exposes port {port} twice")]
    PortTwice {
        /// The balancing tier.
        tier: TierName,
        /// The port.
        port: u16,
    },
    /// A balance's health check.
    #[error("health check: {0}")]
    Check(InvalidHealthCheck),
    /// Too long.
    #[error("a membership of more than {MAX_ENTRIES} entries is not read")]
    TooLong,
}

/// Who serves in a farm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Membership {
    pub farm: FarmName,
    pub version: u64,
    pub members: Vec<Member>,
    pub balances: Vec<Balance>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Member {
    pub name: MemberName,
    pub tier: TierName,
    pub role: RoleName,
    pub address: Ipv4Addr,
    pub state: State,
}

/// What balancers give a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Booting: nothing yet.
    Joining,
    /// Its share.
    Active,
    /// Nothing new.
    Draining,
}

/// A port that one tier exposes for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Balance {
    pub tier: TierName,
    pub listen_port: u16,
    pub backend_tier: TierName,
    pub backend_port: u16,
    pub check: BackendCheck,
}

/// How a balancer checks a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub(crate) enum BackendCheck {
    None,
    Tcp { port: u16, interval_ms: u32, timeout_ms: u32 },
    Http { port: u16, path: String, interval_ms: u32, timeout_ms: u32 },
}

impl TryFrom<&common::Membership> for Membership {
    type Error = InvalidMembership;

    fn try_from(wire: &common::Membership) -> Result<Self, InvalidMembership> {
        if wire.members.len() > MAX_ENTRIES || wire.balances.len() > MAX_ENTRIES {
            return Err(InvalidMembership::TooLong);
        }
        let members: Vec<Member> = wire.members.iter().map(member).collect::<Result<_, _>>()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = members.iter().find(|member| !names.insert(&member.name)) {
            return Err(InvalidMembership::Twice(twice.name.clone()));
        }
        let balances: Vec<Balance> = wire.balances.iter().map(balance).collect::<Result<_, _>>()?;
        let mut ports = BTreeSet::new();
        if let Some(twice) = balances.iter().find(|b| !ports.insert((&b.tier, b.listen_port))) {
            let (tier, port) = (twice.tier.clone(), twice.listen_port);
            return Err(InvalidMembership::PortTwice { tier, port });
        }
        Ok(Self { farm: wire.farm.parse()?, version: wire.version, members, balances })
    }
}

fn member(wire: &common::Member) -> Result<Member, InvalidMembership> {
    let name: MemberName = wire.name.parse()?;
    let address = wire.address.parse().map_err(|_| InvalidMembership::Address {
        member: name.clone(),
        given: wire.address.chars().take(40).collect(),
    })?;
    let state = match WireState::try_from(wire.state) {
        Ok(WireState::Joining) => State::Joining,
        Ok(WireState::Active) => State::Active,
        Ok(WireState::Draining) => State::Draining,
        Ok(WireState::Unspecified) | Err(_) => return Err(InvalidMembership::State(name)),
    };
    Ok(Member { name, tier: wire.tier.parse()?, role: wire.role.parse()?, address, state })
}

fn balance(wire: &common::Balance) -> Result<Balance, InvalidMembership> {
    let number = |given| match u16::try_from(given) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(InvalidMembership::Port(given)),
    };
    Ok(Balance {
        tier: wire.tier.parse()?,
        listen_port: number(wire.listen_port)?,
        backend_tier: wire.backend_tier.parse()?,
        backend_port: number(wire.backend_port)?,
        check: check(wire.check.as_ref()).map_err(InvalidMembership::Check)?,
    })
}

fn check(wire: Option<&common::HealthCheck>) -> Result<BackendCheck, InvalidHealthCheck> {
    let Some(wire) = wire else { return Ok(BackendCheck::None) };
    let wire = with_times(wire);
    let (interval_ms, timeout_ms) = (wire.interval_ms, wire.timeout_ms);
    Ok(match HealthTarget::try_from(&wire)? {
        HealthTarget::None => BackendCheck::None,
        HealthTarget::Tcp(port) => BackendCheck::Tcp { port, interval_ms, timeout_ms },
        HealthTarget::Http(port, path) => {
            BackendCheck::Http { port, path: path.into(), interval_ms, timeout_ms }
        }
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A balancer and some web servers in these states.
    pub(in crate::membership) fn shop(version: u64, web: &[WireState]) -> common::Membership {
        let member = |tier: &str, role: &str, ordinal: usize, host: usize, state: WireState| {
            common::Member {
                name: format!("shop/{tier}/{ordinal}"),
                tier: tier.to_owned(),
                role: role.to_owned(),
                address: format!("10.20.1.{host}"),
                state: state.into(),
            }
        };
        let mut members = vec![member("lb", "load-balancer", 1, 10, WireState::Active)];
        for (i, state) in web.iter().enumerate() {
            members.push(member("web", "web-server", i + 1, i + 11, *state));
        }
        common::Membership {
            farm: "shop".to_owned(),
            version,
            members,
            balances: vec![common::Balance {
                tier: "lb".to_owned(),
                listen_port: 80,
                backend_tier: "web".to_owned(),
                backend_port: 8080,
                check: Some(common::HealthCheck {
                    kind: common::health_check::Kind::Http.into(),
                    port: 8080,
                    path: "/health".to_owned(),
                    interval_ms: 1000,
                    timeout_ms: 900,
                }),
            }],
        }
    }

    #[test]
    fn each_fault_is_named() {
        let refused = |change: fn(&mut common::Membership)| {
            let mut wire = shop(1, &[WireState::Active]);
            change(&mut wire);
            Membership::try_from(&wire).expect_err("refused").to_string()
        };
        assert!(refused(|m| m.farm = "a/b".to_owned()).contains("farm name \"a/b\""));
        assert!(refused(|m| m.members[1].address = "web".to_owned()).contains("IPv4"));
        assert!(refused(|m| m.members[1].state = 0).contains("state"));
        assert!(refused(|m| m.members[1].name = "shop/lb/1".to_owned()).contains("twice"));
        assert!(refused(|m| m.balances[0].backend_port = 65_536).contains("65536"));
        assert!(
            refused(|m| m.balances.push(m.balances[0].clone())).contains("exposes port 80 twice")
        );
        let path = |m: &mut common::Membership| {
            m.balances[0].check.as_mut().expect("there").path = "/a\n  bind *:22".to_owned();
        };
        assert!(refused(path).contains("path"));
    }

    proptest! {
        #[test]
        fn no_message_breaks_it(
            farm in ".{0,30}", name in ".{0,30}", tier in ".{0,30}", address in ".{0,30}",
            state in any::<i32>(), port in any::<u32>(), kind in any::<i32>(), path in ".{0,30}",
        ) {
            let mut wire = shop(1, &[WireState::Active]);
            let _ = Membership::try_from(&common::Membership { farm, ..wire.clone() });
            wire.balances[0].check = Some(common::HealthCheck {
                kind, port, path, interval_ms: port, timeout_ms: port,
            });
            let _ = Membership::try_from(&wire);
            wire.members[0] = common::Member { name, tier: tier.clone(), role: tier, address, state };
            let _ = Membership::try_from(&wire);
        }
    }
}
