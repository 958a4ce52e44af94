//! bootd: the boot server of a site. DHCP, TFTP, HTTP and iSCSI for nodes, a collector for their
//! agents, and one door for control.

mod boot;
mod collector;
mod desired;
mod dhcp;
mod edge;
mod events;
mod http;
mod iscsi;
mod scsi;
mod segment;
mod tftp;
mod volume;
mod zone;
