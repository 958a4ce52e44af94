//! What HAProxy says about itself on its runtime socket, parsed by pure functions
//! (HAProxy 2.6 management guide, sections 9.1 and 9.3).

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use croft_proto::MemberName;
use croft_proto::common::BackendSessions;

use super::config::{backend_port, member_name};

/// A server as `show servers state` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Actual {
    pub backend: String,
    pub name: String,
    /// Nothing if it is not IPv4 with a port.
    pub address: Option<SocketAddrV4>,
    admin: u32,
    weight: u32,
}

/// Bits of `srv_admin_state` that mean maintenance: forced, inherited, by configuration, by
/// resolution, by host name.
const MAINTENANCE: u32 = 0x01 | 0x02 | 0x04 | 0x20 | 0x40;

/// Forced and inherited drain.
const DRAIN: u32 = 0x08 | 0x10;

impl Actual {
    pub fn maintenance(&self) -> bool {
        self.admin & MAINTENANCE != 0
    }

    /// Gets nothing new, and keeps what it has and its checks.
    pub fn draining(&self) -> bool {
        !self.maintenance() && (self.admin & DRAIN != 0 || self.weight == 0)
    }

    /// Gets its share, if its checks pass.
    pub fn serving(&self) -> bool {
        !self.maintenance() && !self.draining()
    }
}

/// Reads `show servers state`; servers of backends that are not ours are left out, as are lines
/// that are not understood.
pub(crate) fn parse_servers(text: &str) -> Vec<Actual> {
    let mut columns: Vec<&str> = Vec::new();
    let mut servers = Vec::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix("# ") {
            columns = header.split(' ').collect();
            continue;
        }
        let fields: Vec<&str> = line.split(' ').collect();
        let field =
            |name| columns.iter().position(|c| *c == name).and_then(|i| fields.get(i).copied());
        let server = || {
            let backend = field("be_name").filter(|name| backend_port(name).is_some())?;
            let address = field("srv_addr")?.parse().ok();
            let port = field("srv_port")?.parse().ok();
            Some(Actual {
                backend: backend.to_owned(),
                name: field("srv_name")?.to_owned(),
                address: address.zip(port).map(|(address, port)| SocketAddrV4::new(address, port)),
                admin: field("srv_admin_state")?.parse().ok()?,
                weight: field("srv_uweight")?.parse().ok()?,
            })
        };
        servers.extend(server());
    }
    servers
}

/// Reads `show stat`: current sessions per member, over all exposed ports.
pub(crate) fn parse_sessions(csv: &str) -> Vec<BackendSessions> {
    let mut lines = csv.lines();
    let columns: Vec<&str> =
        lines.next().unwrap_or_default().trim_start_matches("# ").split(',').collect();
    let column = |name| columns.iter().position(|c| *c == name);
    let (Some(backend), Some(server), Some(current), Some(queued)) =
        (column("pxname"), column("svname"), column("scur"), column("qcur"))
    else {
        return Vec::new();
    };
    let mut sessions: BTreeMap<MemberName, u32> = BTreeMap::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u32>().ok()).unwrap_or(0);
        let ours = fields.get(backend).is_some_and(|name| backend_port(name).is_some());
        let member = fields.get(server).and_then(|name| member_name(name));
        if let (true, Some(member)) = (ours, member) {
            let held = sessions.entry(member).or_default();
            *held = held.saturating_add(number(current)).saturating_add(number(queued));
        }
    }
    sessions
        .into_iter()
        .map(|(member, sessions)| BackendSessions { member: member.to_string(), sessions })
        .collect()
}

/// The worker's process number in `show info`.
pub(crate) fn parse_pid(info: &str) -> Option<u32> {
    info.lines().find_map(|line| line.strip_prefix("Pid: ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Actual {
        pub(in crate::membership::haproxy) fn test(
            backend: &str,
            name: &str,
            address: SocketAddrV4,
            admin: u32,
            weight: u32,
        ) -> Self {
            Self {
                backend: backend.to_owned(),
                name: name.to_owned(),
                address: Some(address),
                admin,
                weight,
            }
        }

        pub(in crate::membership::haproxy) fn set_admin(&mut self, admin: u32, weight: u32) {
            (self.admin, self.weight) = (admin, weight);
        }
    }

    /// As HAProxy 2.6.12 prints it.
    const SERVERS: &str = "\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port
4 port-80 1 shop:web:1 10.20.1.11 2 0 1 1 5 6 3 4 6 0 0 0 - 8080 - 0 0 - - 0
4 port-80 2 shop:web:2 10.20.1.12 2 8 1 1 5 6 3 4 6 0 0 0 - 8080 - 0 0 - - 0
4 port-80 3 shop:web:3 10.20.1.13 0 5 1 1 5 6 3 4 6 0 0 0 - 8080 - 0 0 - - 0
5 other 1 x 10.20.1.13 0 5 1 1 5 6 3 4 6 0 0 0 - 8080 - 0 0 - - 0
";

    #[test]
    fn the_three_states_of_a_server_are_told_apart() {
        let servers = parse_servers(SERVERS);
        assert_eq!(servers.len(), 3);
        assert_eq!(servers[0].address, Some("10.20.1.11:8080".parse().expect("valid")));
        assert!(servers[0].serving() && servers[1].draining() && servers[2].maintenance());
        assert!(!servers[1].serving() && !servers[2].draining());
    }

    #[test]
    fn sessions_are_summed_over_ports_and_include_the_queue() {
        let csv = "# pxname,svname,qcur,qmax,scur,smax\n\
                   port-80,shop:web:1,1,0,3,9\nport-443,shop:web:1,0,0,4,9\n\
                   port-80,BACKEND,0,0,7,9\nstatus,FRONTEND,,,2,9\n";
        let expected = BackendSessions { member: "shop/web/1".to_owned(), sessions: 8 };
        assert_eq!(parse_sessions(csv), [expected]);
    }

    #[test]
    fn the_worker_says_who_it_is() {
        assert_eq!(parse_pid("Name: HAProxy\nPid: 4242\nUptime: 0d\n"), Some(4242));
    }

    proptest! {
        #[test]
        fn no_answer_breaks_it(text in any::<String>(), tail in "[ -~\n]{0,200}") {
            for text in [text, format!("{SERVERS}{tail}")] {
                let _ = (parse_servers(&text), parse_sessions(&text), parse_pid(&text));
            }
        }
    }
}
