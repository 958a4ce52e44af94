//! Which idle node serves a member.

use std::cmp::Reverse;

use croft_proto::NodeName;

use crate::model::{Node, NodeState};

/// The best of these nodes that is idle: fewest failures within the hour, then the longest idle
/// (in minutes), then by name.
pub fn choose<'a>(nodes: impl Iterator<Item = &'a Node>, now_ms: u64) -> Option<&'a NodeName> {
    nodes
        .filter(|node| node.state == NodeState::Idle)
        .min_by_key(|node| {
            let idle_minutes = now_ms.saturating_sub(node.since_ms) / 60_000;
            (node.recent_failures(now_ms), Reverse(idle_minutes), &node.name)
        })
        .map(|node| &node.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, since_ms: u64, failures_ms: Vec<u64>) -> Node {
        Node { failures_ms, ..Node::new(name.parse().expect("valid"), since_ms) }
    }

    #[test]
    fn sound_nodes_go_first() {
        let now = 10_000_000;
        let failed = node("n1", 0, vec![now - 1000]);
        let fresh = node("n2", now - 1000, vec![]);
        let rested = node("n4", 0, vec![1]);
        let mut busy = node("n0", 0, vec![]);
        busy.state = NodeState::InService;
        let nodes = [failed, fresh, rested.clone(), node("n3", 0, vec![]), busy.clone()];
        assert_eq!(choose(nodes.iter(), now).map(NodeName::as_str), Some("n3"));
        assert_eq!(choose([&rested, &busy].into_iter(), now).map(NodeName::as_str), Some("n4"));
        assert_eq!(choose([&busy].into_iter(), now), None);
    }
}
