//! HAProxy's configuration as text: a pure function of what the farm wants.
//!
//! The choices behind the numbers: a web node that is switched off goes silent, and its client
//! may wait 10 s. New requests notice after `timeout connect` and go elsewhere; a request that
//! the dead node already had is asked again elsewhere after `timeout server`; checks take the
//! node out after two failures to connect. A node that is merely slow stays: a check may take
//! `timeout check` once it is connected.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use crate::membership::model::{BackendCheck, Membership, State};
use croft_proto::{MemberName, TierName};

/// Port of the balancer's own health and statistics listener, on the farm's segment.
pub(crate) const STATUS_PORT: u16 = 8404;

/// What needs a reload when it changes: everything but the servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The runtime socket.
    pub socket: PathBuf,
    /// Where exposed ports listen; `None` is every address.
    pub bind: Option<Ipv4Addr>,
    /// Where the status listener listens, besides the loopback.
    pub status: Ipv4Addr,
    /// Port of the status listener.
    pub status_port: u16,
    /// User and group that the worker runs as, by number; `None` where they cannot be changed.
    pub run_as: Option<(u32, u32)>,
    pub ports: Vec<Exposed>,
}

/// One exposed port and the servers' side of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exposed {
    pub listen_port: u16,
    pub check: BackendCheck,
}

/// A member behind an exposed port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub listen_port: u16,
    pub member: MemberName,
    pub address: SocketAddrV4,
    pub draining: bool,
}

/// Name of the backend behind an exposed port.
pub(crate) fn backend_name(listen_port: u16) -> String {
    format!("port-{listen_port}")
}

/// The exposed port of a backend's name.
pub(crate) fn backend_port(name: &str) -> Option<u16> {
    name.strip_prefix("port-")?.parse().ok()
}

/// A member's name as HAProxy allows it (no slash), unambiguous in both directions.
pub(crate) fn server_name(member: &MemberName) -> String {
    member.to_string().replace('/', ":")
}

/// The member of a server's name.
pub(crate) fn member_name(server: &str) -> Option<MemberName> {
    server.replace(':', "/").parse().ok()
}

/// What a tier's balancers expose.
pub(crate) fn exposed(membership: &Membership, tier: &TierName) -> Vec<Exposed> {
    let mine = membership.balances.iter().filter(|balance| balance.tier == *tier);
    mine.map(|b| Exposed { listen_port: b.listen_port, check: b.check.clone() }).collect()
}

/// Who serves behind it. Joining members are absent.
pub(crate) fn servers(membership: &Membership, tier: &TierName) -> Vec<Server> {
    let mut servers = Vec::new();
    for balance in membership.balances.iter().filter(|balance| balance.tier == *tier) {
        for member in &membership.members {
            if member.tier == balance.backend_tier && member.state != State::Joining {
                servers.push(Server {
                    listen_port: balance.listen_port,
                    member: member.name.clone(),
                    address: SocketAddrV4::new(member.address, balance.backend_port),
                    draining: member.state == State::Draining,
                });
            }
        }
    }
    servers
}

/// The settings of a server: the same in the file and in `add server`, which inherits nothing
/// from `default-server`.
pub(crate) fn server_settings(check: &BackendCheck) -> String {
    let (port, interval_ms) = match check {
        BackendCheck::None => return String::new(),
        BackendCheck::Tcp { port, interval_ms, .. }
        | BackendCheck::Http { port, interval_ms, .. } => (port, interval_ms),
    };
    // A check is never rarer than once a second: it is what takes a dead node out.
    let inter = (*interval_ms).min(1000);
    let fast = inter.min(500);
    format!(
        " check port {port} inter {inter}ms fastinter {fast}ms downinter {inter}ms fall 2 rise 1"
    )
}

/// The whole file.
pub(crate) fn render(layout: &Layout, servers: &[Server]) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write(&mut text, layout, servers);
    text
}

fn write(out: &mut String, layout: &Layout, servers: &[Server]) -> std::fmt::Result {
    out.push_str(
        "# Written by croft-agent from the farm's membership; changes are overwritten.\n\
         global\n\
         \x20   maxconn 4000\n\
         \x20   hard-stop-after 60s\n",
    );
    let socket = layout.socket.display();
    writeln!(out, "    stats socket {socket} mode 600 level admin expose-fd listeners")?;
    if let Some((user, group)) = layout.run_as {
        writeln!(out, "    uid {user}\n    gid {group}")?;
    }
    out.push_str(
        "\n\
         defaults\n\
         \x20   mode http\n\
         \x20   option http-server-close\n\
         \x20   option forwardfor\n\
         \x20   option redispatch 1\n\
         \x20   retries 3\n\
         \x20   timeout client 30s\n\
         \x20   timeout http-request 10s\n\
         \x20   timeout http-keep-alive 10s\n\
         \x20   timeout queue 5s\n\
         \x20   timeout connect 1s\n\
         \x20   timeout server 5s\n\
         \n\
         frontend status\n",
    );
    writeln!(out, "    bind 127.0.0.1:{}", layout.status_port)?;
    if !layout.status.is_loopback() {
        writeln!(out, "    bind {}:{}", layout.status, layout.status_port)?;
    }
    out.push_str("    monitor-uri /health\n    stats enable\n    stats uri /stats\n");
    let bind = layout.bind.map_or("*".to_owned(), |address| address.to_string());
    for exposed in &layout.ports {
        let port = exposed.listen_port;
        let name = backend_name(port);
        writeln!(out, "\nfrontend in-{port}\n    bind {bind}:{port}\n    default_backend {name}")?;
        writeln!(out, "\nbackend {name}\n    balance leastconn\n    http-reuse never")?;
        out.push_str(
            "    retry-on conn-failure empty-response junk-response response-timeout 0rtt-rejected\n    \
             # What changes something is not asked twice.\n    \
             http-request disable-l7-retry if ! { method GET HEAD OPTIONS }\n",
        );
        match &exposed.check {
            BackendCheck::None => {}
            BackendCheck::Tcp { timeout_ms, .. } => {
                writeln!(out, "    timeout check {}ms", (*timeout_ms).max(3000))?;
            }
            BackendCheck::Http { path, timeout_ms, .. } => {
                writeln!(out, "    timeout check {}ms", (*timeout_ms).max(3000))?;
                writeln!(out, "    option httpchk GET {path}")?;
                writeln!(out, "    http-check expect status 200-299")?;
            }
        }
        let settings = server_settings(&exposed.check);
        for server in servers.iter().filter(|server| server.listen_port == port) {
            let name = server_name(&server.member);
            let weight = if server.draining { " weight 0" } else { "" };
            writeln!(out, "    server {name} {}{settings}{weight}", server.address)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use croft_proto::common::member::State as Wire;

    use super::*;
    use crate::membership::model::tests::shop;

    fn layout(membership: &Membership) -> Layout {
        Layout {
            socket: PathBuf::from("/run/croft/haproxy.sock"),
            bind: Some(Ipv4Addr::new(203, 0, 113, 10)),
            status: Ipv4Addr::new(10, 20, 1, 10),
            status_port: STATUS_PORT,
            run_as: Some((65534, 65534)),
            ports: exposed(membership, &"lb".parse().expect("valid")),
        }
    }

    #[test]
    fn the_file_is_as_expected() {
        let wire = shop(7, &[Wire::Active, Wire::Draining, Wire::Joining]);
        let membership = Membership::try_from(&wire).expect("valid");
        let servers = servers(&membership, &"lb".parse().expect("valid"));
        let expected = include_str!("expected.cfg");
        let rendered = render(&layout(&membership), &servers);
        assert_eq!(rendered, expected, "rendered:\n{rendered}");
    }

    #[test]
    fn servers_alone_do_not_change_the_layout() {
        let first = Membership::try_from(&shop(1, &[Wire::Active])).expect("valid");
        let second = Membership::try_from(&shop(2, &[Wire::Draining; 4])).expect("valid");
        assert_eq!(layout(&first), layout(&second));
        let mut moved = shop(3, &[Wire::Active]);
        moved.balances[0].listen_port = 81;
        assert_ne!(layout(&first), layout(&Membership::try_from(&moved).expect("valid")));
    }

    #[test]
    fn names_read_back() {
        let member: MemberName = "shop/web/12".parse().expect("valid");
        assert_eq!(member_name(&server_name(&member)), Some(member));
        assert_eq!(backend_port(&backend_name(8080)), Some(8080));
        assert_eq!(member_name("other"), None);
        assert_eq!(backend_port("port-"), None);
    }
}
