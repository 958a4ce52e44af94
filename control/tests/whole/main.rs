//! The real program against the world around it: fakes behind the real protocols (`fakes`), the real
//! `ovsdb-server`, the real boot server. One program, so that the fakes are compiled once.

mod changes;
mod crash;
mod data;
mod fakes;
mod kills;
mod life;
mod outage;
mod ovsdb;
mod tenants;
