//! A node's last boots: the one question that is passed on, because only the boot server has seen
//! them.

use croft_proto::{NodeName, api, edge, with_causes};
use tokio::sync::Mutex;
use tonic::{Code, Status};

use super::apply::internal;
use crate::drivers::bootserver::{BootdError, Credentials, Dial};
use crate::model::{Bootd, Node, Role, Who};

/// The way to the boot server: one connection, whoever asks and however often.
#[derive(Debug, Default)]
pub struct BootsOf {
    dial: Mutex<Dial>,
}

impl BootsOf {
    /// What the boot server has seen of a node.
    ///
    /// # Errors
    /// It cannot be asked: FAILED_PRECONDITION.
    pub async fn ask(
        &self,
        bootd: &Bootd,
        own: &Credentials,
        node: &NodeName,
    ) -> Result<edge::BootsReply, Status> {
        let client = self.dial.lock().await.client(bootd, own);
        let (client, _) = client.map_err(internal)?;
        client.boots(node).await.map_err(|fault| refused(bootd, node, &fault))
    }
}

fn refused(bootd: &Bootd, node: &NodeName, fault: &BootdError) -> Status {
    let name = &bootd.name;
    match fault {
        BootdError::Call { code: Code::Unimplemented, .. } => Status::failed_precondition(format!(
            "the boot server {name} is older than control and cannot tell of boots: update it"
        )),
        BootdError::Call {
            code: Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown,
            message,
            ..
        } => Status::failed_precondition(format!(
            "the boot server {name} does not answer, and nobody else has seen the boots of {node}: \
             is it running? ({message})"
        )),
        _ => Status::internal(with_causes(fault)),
    }
}

/// What the caller may see of it. A tenant's business begins with the boot window that was opened
/// when the node was given to its member: what the node did before, it did for somebody else.
pub fn show(who: &Who, node: &Node, reply: edge::BootsReply) -> api::NodeBoots {
    let edge::BootsReply { mut boots, uptime_ms } = reply;
    if who.role == Role::Tenant {
        boots.retain(|boot| boot.window == node.window);
    }
    api::NodeBoots { node: node.name.to_string(), boots, remembered_ms: uptime_ms }
}

#[cfg(test)]
mod tests {
    use croft_proto::common::Boot;

    use super::*;

    #[test]
    fn a_tenant_sees_the_boots_of_its_own_time_alone() {
        let mut node = Node::new("n1".parse().expect("a name"), 0);
        node.window = 4;
        let boot = |window| Boot { window, ..Boot::default() };
        let reply = || edge::BootsReply { boots: [0, 3, 4, 4, 5].map(boot).to_vec(), uptime_ms: 9 };
        let seen = |role| {
            let who = Who { organization: "acme".parse().expect("a name"), role };
            let shown = show(&who, &node, reply());
            assert_eq!((shown.node.as_str(), shown.remembered_ms), ("n1", 9));
            shown.boots.iter().map(|boot| boot.window).collect::<Vec<_>>()
        };
        assert_eq!(seen(Role::Operator), [0, 3, 4, 4, 5]);
        assert_eq!(seen(Role::Tenant), [4, 4]);
    }
}
