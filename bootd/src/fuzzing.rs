//! What fuzzing asks of bootd (docs/fuzzing.md): a function for each codec, and for the decisions
//! behind some. It takes any bytes, panics if a property does not hold, and says whether the bytes
//! were taken for something good.
//!
//! Tests and cargo-fuzz alone compile this. Each function lives in the `fuzz` module of its room.

pub use crate::alone::fuzz::config;
pub use crate::collector::fuzz::message as agent_message;
pub use crate::desired::fuzz::state as desired_state;
pub use crate::dhcp::fuzz::request as dhcp;
pub use crate::http::fuzz::connection_bytes as http;
pub use crate::iscsi::fuzz::{login as iscsi_login, pdu as iscsi_pdu, text as iscsi_text};
pub use crate::scsi::fuzz::{
    cdb as scsi_cdb, commands as scsi_commands, parameters as scsi_parameters, reservations,
};
pub use crate::tftp::fuzz::datagram as tftp;
pub use crate::volume::fuzz::{catalog, layer_page, log_half, qcow2};

#[cfg(test)]
mod tests {
    use croft_test_support::fuzz::{Target, replay};

    const TARGETS: &[Target] = &[
        ("bootd_agent_message", super::agent_message),
        ("bootd_catalog", super::catalog),
        ("bootd_config", super::config),
        ("bootd_desired_state", super::desired_state),
        ("bootd_dhcp", super::dhcp),
        ("bootd_http", super::http),
        ("bootd_iscsi_login", super::iscsi_login),
        ("bootd_iscsi_pdu", super::iscsi_pdu),
        ("bootd_iscsi_text", super::iscsi_text),
        ("bootd_layer_page", super::layer_page),
        ("bootd_log_half", super::log_half),
        ("bootd_qcow2", super::qcow2),
        ("bootd_reservations", super::reservations),
        ("bootd_scsi_cdb", super::scsi_cdb),
        ("bootd_scsi_commands", super::scsi_commands),
        ("bootd_scsi_parameters", super::scsi_parameters),
        ("bootd_tftp", super::tftp),
    ];

    #[test]
    fn the_corpora_hold() {
        replay("bootd", TARGETS);
    }
}
