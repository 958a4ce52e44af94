//! Fuzz targets: the membership that bootd sends, with the configuration that follows from it; and
//! what HAProxy says on its socket.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use croft_proto::{MemberName, TierName, common};
use prost::Message;

use super::config::{
    Layout, STATUS_PORT, backend_name, backend_port, exposed, member_name, render, server_name,
    servers,
};
use super::plan::plan;
use super::state::{parse_pid, parse_servers, parse_sessions};
use crate::membership::model::{BackendCheck, Membership};

/// A message. What is taken ends in a file that says that and nothing else.
pub fn membership(data: &[u8]) -> bool {
    let Ok(wire) = common::Membership::decode(data) else { return false };
    let Ok(membership) = Membership::try_from(&wire) else { return false };
    assert_eq!((membership.members.len(), membership.version), (wire.members.len(), wire.version));
    for member in &membership.members {
        assert_eq!(member_name(&server_name(&member.name)).as_ref(), Some(&member.name));
    }
    let tiers: BTreeSet<&TierName> = membership.balances.iter().map(|b| &b.tier).collect();
    tiers.into_iter().for_each(|tier| balanced(&membership, tier));
    true
}

fn balanced(membership: &Membership, tier: &TierName) {
    let ports = exposed(membership, tier);
    let layout = Layout {
        socket: PathBuf::from("/run/croft/haproxy.sock"),
        bind: None,
        status: Ipv4Addr::new(10, 20, 1, 10),
        status_port: STATUS_PORT,
        run_as: Some((65534, 65534)),
        ports: ports.clone(),
    };
    let servers = servers(membership, tier);
    let text = render(&layout, &servers);
    assert!(text.bytes().all(|b| b == b'\n' || b == b' ' || b.is_ascii_graphic()), "{text}");
    let begin = |with: &str| text.lines().filter(|l| l.trim_start().starts_with(with)).count();
    assert_eq!(begin("server "), servers.len(), "{text}");
    // One beside the exposed ports is the status listener's.
    assert_eq!((begin("frontend "), begin("backend ")), (ports.len() + 1, ports.len()), "{text}");
    let checks = ports.iter().filter(|port| matches!(port.check, BackendCheck::Http { .. }));
    assert_eq!(begin("option httpchk "), checks.count(), "{text}");
    for port in &ports {
        assert_eq!(backend_port(&backend_name(port.listen_port)), Some(port.listen_port));
    }
    // From nothing, each is made once.
    assert!(plan(&servers, &[]).len() >= servers.len());
}

/// Text, as the answer to each question.
pub fn answers(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().count();
    let servers = parse_servers(&text);
    assert!(servers.len() <= lines);
    for server in &servers {
        assert!(backend_port(&server.backend).is_some(), "{server:?} is not ours");
        let states = [server.maintenance(), server.draining(), server.serving()];
        assert_eq!(states.into_iter().filter(|state| *state).count(), 1, "{server:?}");
    }
    // None of them is wanted: each is deleted.
    assert!((servers.len()..=2 * servers.len()).contains(&plan(&[], &servers).len()));
    let sessions = parse_sessions(&text);
    assert!(sessions.len() <= lines);
    let members = sessions.iter().map(|held| held.member.parse::<MemberName>());
    let members: BTreeSet<MemberName> = members.collect::<Result<_, _>>().expect("names");
    assert_eq!(members.len(), sessions.len(), "each member once");
    !servers.is_empty() || !sessions.is_empty() || parse_pid(&text).is_some()
}
