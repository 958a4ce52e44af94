//! Drivers of devices. Each reads the device, computes a plan (pure), applies it and verifies.

pub mod bootserver;
pub mod power;
pub mod switch;
