//! The real `croft` before a fake control.

mod support;

use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rcgen::CertifiedKey;
use support::{DEADLINE, Fake, Operator, Running, TOKEN, bind, key};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

struct Stage {
    fake: Fake,
    operator: Operator,
    key: CertifiedKey<rcgen::KeyPair>,
    address: String,
    control: Running,
}

fn stage() -> Stage {
    let (fake, key) = (Fake::default(), key());
    let listener = bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let control = Running::start(fake.clone(), listener, &key);
    let operator = Operator::new(&address, &key.cert.pem(), TOKEN);
    Stage { fake, operator, key, address, control }
}

#[tokio::test]
async fn tables_for_people_and_json_with_the_names_of_the_protocol() {
    let stage = stage();
    let ran = stage.operator.croft(&["node", "ls"]).await;
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("NAME  CLASS  STATE") && lines[1].starts_with("n1    small"));

    let ran = stage.operator.croft(&["--output", "json", "node", "ls"]).await;
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["nodes"][0]["name"], "n1");
    assert_eq!(json["nodes"][0]["state_age_ms"], 61_000);
    assert_eq!(json["nodes"][1]["cpu"], -1.0);

    for (arguments, field) in [
        (vec!["grid", "show"], "dead_vlan"),
        (vec!["node", "show", "n1"], "hardware_class"),
        (vec!["node", "boot", "n1"], "boots"),
        (vec!["farm", "ls"], "farms"),
        (vec!["blueprint", "ls"], "blueprints"),
        (vec!["image", "ls"], "images"),
        (vec!["explain", "shop/web"], "decisions"),
    ] {
        let ran = stage.operator.croft(&[&arguments[..], &["--output", "json"]].concat()).await;
        let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
        assert!(json.get(field).is_some(), "{arguments:?}: {}", ran.stdout);
        let ran = stage.operator.croft(&arguments).await;
        assert_eq!(ran.status, 0, "{arguments:?}: {}", ran.stderr);
        assert!(!ran.stdout.is_empty());
    }
    let ran = stage.operator.croft(&["explain", "shop/web", "--limit", "2"]).await;
    assert_eq!(ran.stdout.matches("asked for shop/web").count(), 2);
}

#[tokio::test]
async fn boots_are_drawn_or_given_as_data() {
    let stage = stage();
    let ran = stage.operator.croft(&["node", "boot", "n1"]).await;
    let expected = "\
n1: boot of 2023-11-14 22:13:20Z, firmware after 0.00 s
     0.00 +0.00    |=                               | DHCP  DISCOVER of BIOS: OFFER 10.20.0.11?[2J
  it fetched nothing
";
    assert_eq!((ran.status, ran.stdout.as_str()), (0, expected), "{}", ran.stderr);
    let ran = stage.operator.croft(&["node", "boot", "n1", "--output", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["boots"][0]["steps"][0]["service"], "dhcp");
    assert_eq!((&json["boots"][0]["window"], &json["remembered_ms"]), (&1.into(), &61_000.into()));
    let ran = stage.operator.croft(&["node", "boot", "n2"]).await;
    let none = "n2: no boot to show since bootd was started, 1m01s ago\n";
    assert_eq!((ran.status, ran.stdout.as_str()), (0, none));
    let ran = stage.operator.croft(&["node", "boot", "n3"]).await;
    let old = "croft: control is older than this command and does not know it: update control\n";
    assert_eq!((ran.status, ran.stderr.as_str()), (1, old));
    let ran = stage.operator.croft(&["node", "boot", "n4"]).await;
    assert_eq!((ran.status, ran.stderr.as_str()), (1, "croft: bootd0 does not answer\n"));
}

#[tokio::test]
async fn files_are_sent_whole_and_their_faults_come_back_with_file_and_line() {
    let stage = stage();
    let good = stage.operator.write("shop.toml", "[farm]\nname = \"shop\"\n");
    let ran = stage.operator.croft(&["farm", "apply", &good]).await;
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "farm shop: created\n"));
    let same = stage.operator.write("same.toml", "# same\n");
    let ran = stage.operator.croft(&["grid", "apply", &same]).await;
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "nothing changed\n"));
    let ran = stage.operator.croft(&["blueprint", "apply", &same, "--output", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["changed"], false);

    let bad = stage.operator.write("bad.toml", "# bad\n");
    let ran = stage.operator.croft(&["farm", "apply", &bad]).await;
    assert_eq!((ran.status, ran.stdout.as_str()), (64, ""));
    let expected =
        format!("{bad}:2: farm.name: is missing\n{bad}:5: tier[0].max: must be a whole number\n");
    assert_eq!(ran.stderr, expected);
    let applied = stage.fake.memory.applied.lock().expect("no panic");
    assert_eq!(
        (applied[0].text.as_str(), applied[0].file == good),
        ("[farm]\nname = \"shop\"\n", true)
    );
}

#[tokio::test]
async fn every_failure_is_one_line_and_its_own_status() {
    let stage = stage();
    let ran = stage.operator.croft(&["node", "show", "n9"]).await;
    assert_eq!((ran.status, ran.stderr.as_str()), (1, "croft: no node n9\n"));
    let ran = stage.operator.croft(&["node", "release", "n1"]).await;
    assert_eq!((ran.status, ran.stderr.as_str()), (1, "croft: n1 is Idle, not Quarantined\n"));
    let ran = stage.operator.croft(&["farm", "apply", "/nowhere.toml"]).await;
    assert_eq!((ran.status, ran.stderr.lines().count()), (64, 1));
    assert!(ran.stderr.contains("/nowhere.toml"));
    let ran = stage.operator.croft(&["explain", "shop"]).await;
    assert_eq!(ran.status, 2, "a fault of the command line");

    let text = std::fs::read_to_string(&stage.operator.profile).expect("there");
    let stranger = stage.operator.write("stranger.toml", &text.replace(TOKEN, "guess"));
    let ran = stage.operator.croft(&["--profile", &stranger, "node", "ls"]).await;
    assert_eq!((ran.status, ran.stderr.as_str()), (1, "croft: the token is not known\n"));

    let faulty = stage.operator.write("faulty.toml", "server = 'x'\n\nca = 7\n");
    let ran = stage.operator.croft(&["--profile", &faulty, "node", "ls"]).await;
    assert_eq!(ran.status, 64);
    assert_eq!(ran.stderr.lines().count(), 3, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("{faulty}:1: server: ")), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("{faulty}:3: ca: ")), "{}", ran.stderr);

    let closed = bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").to_string();
    let nobody = Operator::new(&closed, &key().cert.pem(), TOKEN);
    let ran = nobody.croft(&["node", "ls"]).await;
    assert_eq!((ran.status, ran.stderr.lines().count()), (3, 1), "{}", ran.stderr);
    assert!(ran.stderr.contains(&closed) && ran.stderr.contains("refused"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_server_with_another_certificate_never_gets_the_token() {
    let stage = stage();
    let wary = Operator::new(&stage.address, &key().cert.pem(), TOKEN);
    let ran = wary.croft(&["node", "ls"]).await;
    assert_eq!((ran.status, ran.stderr.lines().count()), (3, 1), "{}", ran.stderr);
    assert!(ran.stderr.contains("certificate"), "{}", ran.stderr);
}

#[tokio::test]
async fn deletion_is_waited_for_when_asked() {
    let stage = stage();
    stage.fake.memory.lingers.store(2, Ordering::SeqCst);
    let ran = stage.operator.croft(&["farm", "delete", "shop", "--wait"]).await;
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "farm shop: deleting\n"), "{}", ran.stderr);
    assert_eq!(stage.fake.memory.lingers.load(Ordering::SeqCst), 0);

    stage.fake.memory.lingers.store(1000, Ordering::SeqCst);
    let ran = stage.operator.croft(&["farm", "delete", "shop", "--wait", "--timeout", "1"]).await;
    assert_eq!(ran.status, 4);
    assert!(ran.stderr.contains("not done after 1 s"), "{}", ran.stderr);
    assert_eq!(stage.operator.croft(&["farm", "delete", "shop"]).await.status, 0);
}

#[tokio::test]
async fn events_end_or_follow_and_following_survives_a_restart_of_control() {
    let Stage { fake, operator, key, address, control } = stage();
    let ran = operator.croft(&["events", "--after", "5"]).await;
    assert_eq!(ran.status, 0);
    assert_eq!(ran.stdout.lines().count(), 2);
    assert!(ran.stdout.lines().all(|line| line.contains("  farm-applied  ")), "{}", ran.stdout);

    let mut command = operator.command(&["events", "-f", "--after", "10", "--output", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = async || {
        let line = timeout(DEADLINE, lines.next_line()).await.expect("in time").expect("text");
        let json: serde_json::Value =
            serde_json::from_str(&line.expect("it goes on")).expect("a JSON line");
        json["sequence"].as_u64().expect("a number")
    };
    assert_eq!((next().await, next().await), (11, 12));

    // Control restarts: same address, same certificate, and the next event is the next event.
    drop(control);
    let listener = timeout(DEADLINE, async {
        loop {
            match bind(&address) {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    let listener = listener.await.expect("its predecessor goes in time");
    let again = Running::start(fake.clone(), listener, &key);
    assert_eq!((next().await, next().await), (13, 14));
    assert_eq!(*fake.memory.after.lock().expect("no panic"), [5, 10, 12]);
    child.kill().await.expect("it ran until now");
    drop(again);
}
