//! The iPXE script that one node gets for one boot. Pure.
//!
//! Secrets stand in iPXE settings and in the node's own initrd. The kernel line has none: it is
//! built from texts in which nothing can be expanded, and iPXE's settings are never named there.

use std::net::Ipv4Addr;

use croft_proto::{BootMethod, ImageVersion, Iqn, Secret};

use crate::desired::safe_kernel_args;

/// Arguments that cannot stand on a kernel line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidScript {
    #[error(
        "the image's kernel arguments hold a character that iPXE would read as its own; build the image without it"
    )]
    KernelArgs,
    #[error("the assignment names no image, and its boot method needs one")]
    NoImage,
}

/// How iPXE logs in where it does so itself.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    pub initiator: Iqn,
    pub target: Iqn,
    pub secret: Secret,
}

/// All that a script depends on.
#[derive(Debug, Clone)]
pub(crate) struct Recipe<'a> {
    /// bootd on the node's segment.
    pub server: Ipv4Addr,
    pub method: BootMethod,
    pub image: Option<ImageVersion>,
    /// What the image's kernel always needs.
    pub image_args: &'a str,
    /// What the blueprint adds.
    pub blueprint_args: &'a str,
    /// For methods with a root volume.
    pub login: Option<Login>,
}

/// Writes the script.
///
/// # Errors
/// Kernel arguments that iPXE would expand or split, or no image where one is needed.
pub(crate) fn render(recipe: &Recipe<'_>) -> Result<String, InvalidScript> {
    let server = recipe.server;
    let mut script = String::from("#!ipxe\n");
    match recipe.method {
        BootMethod::Local => {
            // Not 0: UEFI takes a program that ended well for a system that was booted, and shows
            // its menu instead of going on (UEFI 2.10 section 3.1.1). A BIOS does not look at it.
            script.push_str("exit 1\n");
            return Ok(script);
        }
        BootMethod::San => {
            login(&mut script, recipe, "sanboot --drive 0x80");
        }
        BootMethod::Iscsi | BootMethod::Ram => {
            if recipe.method == BootMethod::Iscsi {
                login(&mut script, recipe, "sanhook --drive 0x80");
            }
            let version = recipe.image.ok_or(InvalidScript::NoImage)?;
            let mut line = String::from("initrd=initrd.img initrd=node.img");
            for args in [recipe.image_args, recipe.blueprint_args] {
                if !safe_kernel_args(args) {
                    return Err(InvalidScript::KernelArgs);
                }
                if !args.is_empty() {
                    line.push(' ');
                    line.push_str(args);
                }
            }
            script.push_str(&format!(
                "kernel http://{server}/image/{version}/kernel {line} || goto failed\n\
                 initrd --name initrd.img http://{server}/image/{version}/initrd || goto failed\n\
                 initrd --name node.img http://{server}/boot/node.img || goto failed\n\
                 boot || goto failed\n"
            ));
        }
    }
    // A server that restarts just now is back soon: start again instead of stopping at a prompt.
    script.push_str(":failed\nsleep 3\nreboot\n");
    Ok(script)
}

fn login(script: &mut String, recipe: &Recipe<'_>, command: &str) {
    let Some(login) = &recipe.login else { return };
    script.push_str(&format!(
        "set initiator-iqn {}\nset username {}\nset password {}\n\
         {command} iscsi:{}::::{} || goto failed\n",
        login.initiator,
        login.initiator,
        login.secret.expose(),
        recipe.server,
        login.target,
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "00112233445566778899aabbccddeeff";

    fn recipe(method: BootMethod) -> Recipe<'static> {
        Recipe {
            server: Ipv4Addr::new(10, 20, 1, 1),
            method,
            image: Some(ImageVersion::of(b"image")),
            image_args: "console=ttyS0,115200 net.ifnames=0",
            blueprint_args: "",
            login: Some(Login {
                initiator: Iqn::initiator(&"n1".parse().expect("name")),
                target: Iqn::target(&"shop/web/2".parse().expect("name")),
                secret: Secret::new(SECRET.to_owned()),
            }),
        }
    }

    #[test]
    fn the_iscsi_script_hooks_the_disk_and_boots_the_kernel() {
        let script = render(&recipe(BootMethod::Iscsi)).expect("good");
        let version = ImageVersion::of(b"image");
        assert_eq!(
            script,
            format!(
                "#!ipxe\n\
                 set initiator-iqn iqn.2026-11.internal.croft:node.n1\n\
                 set username iqn.2026-11.internal.croft:node.n1\n\
                 set password {SECRET}\n\
                 sanhook --drive 0x80 iscsi:10.20.1.1::::iqn.2026-11.internal.croft:member.shop.web.2 \
                 || goto failed\n\
                 kernel http://10.20.1.1/image/{version}/kernel initrd=initrd.img \
                 initrd=node.img console=ttyS0,115200 net.ifnames=0 || goto failed\n\
                 initrd --name initrd.img http://10.20.1.1/image/{version}/initrd || goto failed\n\
                 initrd --name node.img http://10.20.1.1/boot/node.img || goto failed\n\
                 boot || goto failed\n\
                 :failed\nsleep 3\nreboot\n"
            )
        );
    }

    #[test]
    fn no_method_puts_a_secret_on_the_kernel_line() {
        for method in BootMethod::ALL {
            let script = render(&recipe(method)).expect("good");
            for line in script.lines().filter(|line| !line.starts_with("set password ")) {
                assert!(!line.contains(SECRET), "{method:?}: {line}");
            }
            let logs_in = matches!(method, BootMethod::Iscsi | BootMethod::San);
            assert_eq!(script.contains(SECRET), logs_in, "{method:?}");
        }
    }

    #[test]
    fn arguments_that_ipxe_would_expand_or_split_are_refused() {
        for bad in ["${password}", "a || shell", "a; b", "a\nshell", "a && b", "\"a", "a\\b", "#a"]
        {
            for (image_args, blueprint_args) in [(bad, ""), ("", bad)] {
                let bad = Recipe { image_args, blueprint_args, ..recipe(BootMethod::Iscsi) };
                assert_eq!(render(&bad), Err(InvalidScript::KernelArgs));
            }
        }
    }
}
