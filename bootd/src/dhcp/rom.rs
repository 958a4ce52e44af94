//! What each kind of network boot ROM insists on, in one table.

use std::net::Ipv4Addr;

use super::packet::Architecture;

/// One kind of ROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rom {
    pub architecture: Architecture,
    /// The iPXE program that continues it.
    pub program: &'static str,
    /// Option 60 of the answer. A PXE ROM drops an offer without `PXEClient` when it has another;
    /// UEFI drops one without `HTTPClient` when it boots by HTTP.
    pub vendor: &'static str,
    /// The boot file is a URL instead of a TFTP name.
    pub url: bool,
    /// Option 43 with PXE_DISCOVERY_CONTROL = 8: take the boot file from this packet, look for no
    /// boot server, show no menu (PXE 2.1, table 2-1). Without it a ROM multicasts for boot servers
    /// and waits.
    pub discovery: bool,
    /// Option 67 beside the `file` field, ended with a NUL: some ROMs read one, some the other, and
    /// those that read the option read it as a C string.
    pub terminated: bool,
}

/// All that Croft has a boot program for.
pub(crate) const ROMS: [Rom; 3] = [
    // Intel's and most vendors' BIOS ROMs; iPXE in their place keeps their UNDI driver.
    Rom {
        architecture: Architecture::Bios,
        program: "undionly.kpxe",
        vendor: "PXEClient",
        url: false,
        discovery: true,
        terminated: true,
    },
    // EDK II's PXE driver. It asks for the file's size first and drops that transfer.
    Rom {
        architecture: Architecture::Uefi,
        program: "snponly.efi",
        vendor: "PXEClient",
        url: false,
        discovery: true,
        terminated: true,
    },
    // EDK II's HTTP boot driver. It wants the URL in the offer already, not only in the ACK.
    Rom {
        architecture: Architecture::UefiHttp,
        program: "snponly.efi",
        vendor: "HTTPClient",
        url: true,
        discovery: false,
        terminated: true,
    },
];

impl Rom {
    /// The row of an architecture.
    pub(crate) fn of(architecture: Architecture) -> Option<&'static Self> {
        ROMS.iter().find(|rom| rom.architecture == architecture)
    }

    /// The boot file that it is told, from bootd at `server`.
    pub(crate) fn file(&self, server: Ipv4Addr) -> String {
        if self.url {
            format!("http://{server}/ipxe/{}", self.program)
        } else {
            self.program.to_owned()
        }
    }

    /// The options that it is told beside that.
    pub(crate) fn options(&self, file: &str) -> Vec<(u8, Vec<u8>)> {
        let mut options = vec![(60, self.vendor.as_bytes().to_vec())];
        if self.discovery {
            options.push((43, vec![6, 1, 8, 255]));
        }
        let mut name = file.as_bytes().to_vec();
        if self.terminated {
            name.push(0);
        }
        options.push((67, name));
        options
    }
}
