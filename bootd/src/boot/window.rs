//! A node's boot: the window in which it may fetch secrets, and what became of them. Pure.
//!
//! ```text
//!          control raises the window, or the node reboots by itself
//!                 ┌─────────────────────────────────────────┐
//!                 ▼          first word after Welcome       │
//!   (none) ──► Open ──────────────────────────────────► Attached
//!                 │ second claimant                         │ assignment gone
//!                 ▼                                         ▼
//!               Shut ───────── assignment gone ─────────► Revoked
//! ```
//!
//! Only Open gives out a script and an initrd; only Open and Attached have a grant in the zone. Each
//! opening has a new serial number, token and CHAP secret. The token is exchanged for a session
//! key, which is durable before the agent sees it; the token is spent when the agent first uses
//! what it got, so that an answer lost on the way does not strand the node.

use std::net::Ipv4Addr;

use croft_proto::{MemberName, NodeName, Secret, SegmentName};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::desired::Assignment;

/// Bytes of randomness in each secret; CHAP wants more than 12 (RFC 7143 section 9.2.1).
const SECRET_BYTES: usize = 16;

/// Where a boot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Script and initrd may be fetched; the token is good.
    Open,
    /// The agent has spent the token.
    Attached,
    /// A second claimant came: nobody gets anything until control opens a new window.
    Shut,
    /// The assignment is gone, and the secrets with it.
    Revoked,
}

/// What a boot is for. A change of any of it is another assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub member: MemberName,
    pub segment: SegmentName,
    pub address: Ipv4Addr,
}

impl Place {
    /// The place that an assignment gives.
    pub(crate) fn of(assignment: &Assignment) -> Self {
        Self {
            member: assignment.member.clone(),
            segment: assignment.segment.clone(),
            address: assignment.address,
        }
    }
}

/// One boot of one node: what must survive a restart of bootd. Its file has mode 0600.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Boot {
    pub node: NodeName,
    /// Number of control's window.
    pub window: u64,
    /// Counts the node's boots: grows at each opening, by control or by the node itself, and is
    /// never used again.
    pub serial: u64,
    pub state: State,
    pub place: Place,
    /// The ephemeral root volume has been made anew for this serial.
    pub prepared: bool,
    /// The script has been fetched: the next DISCOVER is another try to boot.
    pub served: bool,
    /// The UUID that the first claimant sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimant: Option<[u8; 16]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap: Option<Secret>,
}

/// What bootd knows when a node asks to boot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    /// Option 97.
    pub uuid: Option<[u8; 16]>,
    /// No agent of this node has been heard for a while.
    pub quiet: bool,
}

/// What becomes of a DISCOVER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The window is open for it.
    Serve,
    /// It is another boot: open anew, then serve.
    Reopen,
    /// A second claimant: shut the window.
    Shut,
    /// Nothing for it.
    Refuse,
    /// The node runs; whoever asks is not it, or will ask again when it is down.
    Running,
}

impl Boot {
    /// A new window. `serial` must be higher than any before.
    ///
    /// # Errors
    /// The operating system gave no randomness.
    pub(crate) fn open(
        assignment: &Assignment,
        serial: u64,
        claimant: Option<[u8; 16]>,
    ) -> Result<Self, getrandom::Error> {
        Ok(Self {
            node: assignment.node.clone(),
            window: assignment.window,
            serial,
            state: State::Open,
            place: Place::of(assignment),
            prepared: false,
            served: false,
            claimant,
            token: Some(Secret::random(SECRET_BYTES)?),
            key: None,
            chap: Some(Secret::random(SECRET_BYTES)?),
        })
    }

    /// Whether it waits for its node.
    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether its node may reach the zone of its member.
    pub(crate) fn granted(&self) -> bool {
        self.prepared && matches!(self.state, State::Open | State::Attached)
    }

    /// Whether script and initrd may be fetched.
    pub(crate) fn serving(&self) -> bool {
        self.prepared && self.state == State::Open
    }

    /// Judges a DISCOVER from the node's own NIC on its own segment.
    pub(crate) fn judge(&self, claim: Claim) -> Verdict {
        let other = matches!((self.claimant, claim.uuid), (Some(a), Some(b)) if a != b);
        match self.state {
            State::Shut | State::Revoked => Verdict::Refuse,
            State::Open if other && !reordered(self.claimant, claim.uuid) => Verdict::Shut,
            State::Attached if other && !reordered(self.claimant, claim.uuid) => Verdict::Refuse,
            // Its key was given out: somebody may be between Welcome and the first word.
            State::Open if self.key.is_some() && !claim.quiet => Verdict::Running,
            State::Open if self.served || self.key.is_some() => Verdict::Reopen,
            State::Open => Verdict::Serve,
            State::Attached if claim.quiet => Verdict::Reopen,
            State::Attached => Verdict::Running,
        }
    }

    /// The same boot with no secret left and no way back.
    pub(crate) fn ended(&self, state: State) -> Self {
        Self { state, token: None, key: None, chap: None, ..self.clone() }
    }

    /// Exchanges the token for a session key, which is in the result. None: not this token, or
    /// spent. An agent that never used its key may ask again.
    ///
    /// # Errors
    /// The operating system gave no randomness.
    pub(crate) fn redeem(&self, token: &str) -> Result<Option<Self>, getrandom::Error> {
        if !self.serving() || !matches(self.token.as_ref(), token) {
            return Ok(None);
        }
        Ok(Some(Self { key: Some(Secret::random(SECRET_BYTES)?), ..self.clone() }))
    }

    /// Whether this is the session key of this boot.
    pub(crate) fn accepts_key(&self, key: &str) -> bool {
        self.granted() && matches(self.key.as_ref(), key)
    }

    /// The same boot with its token spent: its agent uses its session key. None: that is so
    /// already.
    pub(crate) fn attached(&self) -> Option<Self> {
        (self.state == State::Open).then(|| Self {
            state: State::Attached,
            token: None,
            ..self.clone()
        })
    }
}

/// The same UUID with its first three fields in the other byte order: PXE firmware and iPXE on one
/// machine may disagree.
fn reordered(a: Option<[u8; 16]>, b: Option<[u8; 16]>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    super::identity::same_uuid(a, uuid::Uuid::from_bytes_le(b))
}

fn matches(secret: Option<&Secret>, offered: &str) -> bool {
    secret.is_some_and(|s| bool::from(s.expose().as_bytes().ct_eq(offered.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support;

    const ME: Option<[u8; 16]> = Some([7; 16]);
    const OTHER: Option<[u8; 16]> = Some([8; 16]);

    fn boot() -> Boot {
        let desired = test_support::desired();
        let assignment = &desired.assignments[&"n1".parse().expect("name")];
        Boot { prepared: true, ..Boot::open(assignment, 1, ME).expect("randomness") }
    }

    fn judge(boot: &Boot, uuid: Option<[u8; 16]>, quiet: bool) -> Verdict {
        boot.judge(Claim { uuid, quiet })
    }

    #[test]
    fn verdicts_by_state() {
        let open = boot();
        let served = Boot { served: true, ..boot() };
        let attached = Boot { key: Some(Secret::new("k".into())), ..boot() };
        let attached = attached.attached().expect("was open");
        let shut = boot().ended(State::Shut);
        let revoked = boot().ended(State::Revoked);
        for (boot, uuid, quiet, verdict) in [
            (&open, ME, true, Verdict::Serve),
            (&open, ME, false, Verdict::Serve),
            (&open, None, true, Verdict::Serve),
            (&open, OTHER, true, Verdict::Shut),
            (&served, ME, true, Verdict::Reopen),
            (&served, OTHER, true, Verdict::Shut),
            (&attached, ME, false, Verdict::Running),
            (&attached, ME, true, Verdict::Reopen),
            (&attached, OTHER, true, Verdict::Refuse),
            (&shut, ME, true, Verdict::Refuse),
            (&revoked, ME, true, Verdict::Refuse),
        ] {
            assert_eq!(judge(boot, uuid, quiet), verdict, "{:?} {uuid:?} {quiet}", boot.state);
        }
    }

    #[test]
    fn a_uuid_in_the_other_byte_order_is_no_second_claimant() {
        let mine = uuid::Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        let open = Boot { claimant: Some(mine.into_bytes()), ..boot() };
        assert_eq!(judge(&open, Some(mine.to_bytes_le()), true), Verdict::Serve);
    }

    #[test]
    fn a_token_buys_one_attach() {
        let open = boot();
        let token = open.token.clone().expect("open");
        assert_eq!(open.redeem("wrong").expect("randomness"), None);
        let keyed = open.redeem(token.expose()).expect("randomness").expect("good");
        // Welcome was lost: the agent asks again and gets another key.
        let again = keyed.redeem(token.expose()).expect("randomness").expect("unused");
        let key = again.key.clone().expect("key");
        assert!(again.accepts_key(key.expose()));
        assert!(!again.accepts_key(keyed.key.expect("key").expose()));
        let attached = again.attached().expect("was open");
        assert_eq!(attached.redeem(token.expose()).expect("randomness"), None);
        assert!(attached.accepts_key(key.expose()) && attached.attached().is_none());
        let revoked = attached.ended(State::Revoked);
        assert!(!revoked.accepts_key(key.expose()) && !revoked.granted());
    }

    #[test]
    fn nothing_is_given_before_the_root_volume_is_new() {
        let raw = Boot { prepared: false, ..boot() };
        let token = raw.token.clone().expect("open");
        assert!(!raw.serving() && !raw.granted());
        assert_eq!(raw.redeem(token.expose()).expect("randomness"), None);
    }

    #[test]
    fn debug_shows_no_secret() {
        let boot = boot();
        let shown = format!("{boot:?}");
        for secret in [&boot.token, &boot.chap] {
            assert!(!shown.contains(secret.as_ref().expect("open").expose()));
        }
    }
}
