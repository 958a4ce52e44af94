//! What tests of several crates share: namespaces of a test's own, and a node without a machine,
//! which speaks to bootd what firmware, iPXE, kernel, initiator and agent of a real one speak.
//!
//! Everything here fails by panicking when the test itself is at fault, and returns an error where
//! bootd may rightly be away or say no.

#![forbid(unsafe_code)]

pub mod agent;
pub mod authority;
pub mod dhcp;
pub mod fuzz;
pub mod http;
pub mod images;
pub mod initiator;
pub mod namespace;
