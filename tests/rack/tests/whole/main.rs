//! The rack with real machines in it. One program, so that what the tests share is compiled once.

mod bmc;
mod boot;
mod common;
mod ending;
mod isolation;
