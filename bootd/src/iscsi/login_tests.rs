//! The login as a state machine: whatever comes in, it answers, and lets nobody in by accident.

use std::net::IpAddr;

use croft_proto::{Iqn, NodeName, Secret};
use proptest::prelude::*;

use super::*;
use crate::zone::{Grant, ZoneTable};

fn table() -> ZoneTable {
    let node: NodeName = "n1".parse().expect("valid");
    let zones = ZoneTable::new();
    zones.replace(vec![Grant {
        initiator: Iqn::initiator(&node),
        target: Iqn::target(&"shop/web/1".parse().expect("valid")),
        node,
        window: 1,
        farm: "shop".parse().expect("valid"),
        segment: "seg100".parse().expect("valid"),
        address: [127, 0, 0, 1].into(),
        secret: Secret::new("0123456789abcdef".to_owned()),
        target_secret: Some(Secret::new("fedcba9876543210".to_owned())),
        redirect: None,
        units: Vec::new(),
    }]);
    zones
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("InitiatorName=iqn.2026-11.internal.croft:node.n1".to_owned()),
        Just("TargetName=iqn.2026-11.internal.croft:member.shop.web.1".to_owned()),
        Just("SessionType=Normal".to_owned()),
        Just("AuthMethod=CHAP,None".to_owned()),
        Just("CHAP_A=7,6,5".to_owned()),
        Just("CHAP_N=iqn.2026-11.internal.croft:node.n1".to_owned()),
        Just("CHAP_R=0x00112233445566778899aabbccddeeff".to_owned()),
        Just("CHAP_I=1".to_owned()),
        "CHAP_C=0x[0-9a-f]{0,80}",
        "(MaxBurstLength|FirstBurstLength|InitialR2T|HeaderDigest|X-key)=[A-Za-z0-9,]{0,12}",
        "[ -~]{0,40}",
    ]
}

fn request() -> impl Strategy<Value = (u8, u8, Vec<u8>)> {
    let text = proptest::collection::vec(key(), 0..6).prop_map(|keys| keys.join("\0").into_bytes());
    let noise = proptest::collection::vec(any::<u8>(), 0..200);
    let likely = prop_oneof![Just(0x81_u8), Just(0x00), Just(0x87), Just(0x83), any::<u8>()];
    let opcode = prop_oneof![9 => Just(0x43_u8), 1 => any::<u8>()];
    (opcode, likely, prop_oneof![4 => text, 1 => noise])
}

#[test]
fn more_keys_than_an_answer_can_name_are_refused() {
    let zones = table();
    let segment = "seg100".parse().expect("valid");
    let step = |unknown: usize| {
        let mut text = b"InitiatorName=iqn.2026-11.internal.croft:node.n1\0\
            TargetName=iqn.2026-11.internal.croft:member.shop.web.1\0AuthMethod=CHAP\0"
            .to_vec();
        text.extend(b"X=\0".repeat(unknown));
        let mut header = Header::new(opcode::LOGIN);
        header.set_byte(1, 0);
        let mut login = Login::new(&zones, &segment, IpAddr::from([127, 0, 0, 1]));
        login.step(&Pdu { header, data: &text })
    };
    let Outcome::More(_, text) = step(500) else { panic!("it goes on") };
    assert!(text.len() <= DEFAULT_RECEIVE);
    let Outcome::Refused(_, refusal) = step(600) else { panic!("it is refused") };
    assert_eq!(refusal.status, INVALID_REQUEST);
}

proptest! {
    #[test]
    fn no_conversation_gets_in_without_the_secret(
        requests in proptest::collection::vec(request(), 1..20),
    ) {
        let zones = table();
        let segment = "seg100".parse().expect("valid");
        let mut login = Login::new(&zones, &segment, IpAddr::from([127, 0, 0, 1]));
        for (opcode, flags, data) in requests {
            let mut header = Header::new(opcode & 0x3f);
            header.set_byte(0, opcode).set_byte(1, flags);
            match login.step(&Pdu { header, data: &data }) {
                Outcome::More(_, text) => prop_assert!(text.len() < 4096),
                Outcome::Refused(header, refusal) => {
                    prop_assert_eq!(&header.0[36..38], &refusal.status.to_be_bytes()[..]);
                    break;
                }
                Outcome::Redirected(..) => prop_assert!(false, "nobody said so"),
                // Discovery alone needs no proof.
                Outcome::Done(_, _, done) => {
                    prop_assert_eq!(done.kind, SessionKind::Discovery);
                    break;
                }
            }
        }
    }
}
