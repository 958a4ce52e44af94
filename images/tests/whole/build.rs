//! Whole builds: repeatable, and possible for any user.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{Image, STATIC_PROGRAM, build, lines, packages_cache};

const IMAGES: [&str; 2] = ["load-balancer-test", "shop-content"];

#[test]
fn the_same_inputs_make_the_same_versions_for_any_user() {
    let dir = tempfile::tempdir().expect("directory");
    let program = Path::new(env!("CARGO_BIN_EXE_croft-images"));
    let first = lines(&build(program, &dir.path().join("a"), &packages_cache(), &IMAGES));
    assert_eq!(first.len(), IMAGES.len());

    // Once more with everything else different: place, scratch directory, time, umask and user,
    // with an ordinary user's PATH, which lacks root's tools.
    let other = dir.path().join("other");
    fs::create_dir(&other).expect("made");
    copy_sources(&other.join("sources"));
    let root = Command::new("id").arg("-u").output().expect("id starts").stdout == b"0\n";
    // An ordinary user stays who it is; root becomes nobody.
    let (give, user) = if root {
        (
            "chmod 755 \"$1\"; chown -R 65534:65534 \"$2\"",
            "--reuid=65534 --regid=65534 --clear-groups",
        )
    } else {
        ("true", "")
    };
    let script = format!(
        "set -e; umask 077; mkdir \"$2/tmp\" \"$2/cache\"; cp \"$3\"/*.deb \"$2/cache\"; \
         cp \"$4\" \"$2/builder\"; {give}; cd \"$2\"; exec setpriv {user} --no-new-privs \
         env PATH=/usr/bin:/bin TMPDIR=\"$2/tmp\" \"$2/builder\" build --test --agent {STATIC_PROGRAM} \
         --sources \"$2/sources\" --store \"$2/store\" --packages-cache \"$2/cache\" {}",
        IMAGES.join(" ")
    );
    let second = Command::new("sh")
        .args(["-c", &script, "sh"])
        .args([dir.path(), &other, &packages_cache(), program])
        .output()
        .expect("sh starts");
    assert_eq!(lines(&second), first);

    // What was built can be read as what it claims to be.
    let image = Image::find(&dir.path().join("a"), "load-balancer-test").expect("there");
    assert!(image.manifest.kernel_args.contains("console=ttyS0,115200"));
    for (name, file) in &image.manifest.files {
        let size = fs::metadata(image.file(name)).expect("its blob is there").len();
        assert_eq!(size, file.size, "{name}");
    }
    assert_eq!(image.manifest.files["initrd"].size % 4, 0);
}

fn copy_sources(to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir(to).expect("made");
    for part in ["recipes", "overlay"] {
        let status = Command::new("cp").arg("-r").arg(from.join(part)).arg(to).status();
        assert!(status.expect("cp starts").success());
    }
}

#[test]
fn mistakes_are_told_and_change_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    let store = dir.path().join("store");
    let program = Path::new(env!("CARGO_BIN_EXE_croft-images"));
    let output = build(program, &store, &packages_cache(), &["no-such-image"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(text.contains("no-such-image") && text.contains("web-server-test"), "{text}");

    let output = Command::new(program)
        .args(["build", "--agent", "/bin/true", "--store"])
        .arg(&store)
        .output()
        .expect("the builder starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("crt-static"), "{text}");
    assert!(!store.exists());
}
