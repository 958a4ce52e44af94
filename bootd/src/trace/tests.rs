use super::*;

const N1: &str = "n1";

fn node() -> NodeName {
    N1.parse().expect("a name")
}

/// Notes at so many milliseconds after a start.
struct Clock(Traces, Instant);

impl Clock {
    fn new() -> Self {
        Self(Traces::default(), Instant::now())
    }

    fn at(&self, ms: u64, seen: Seen) {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + ms);
        self.0.note_at(&node(), seen, self.1 + Duration::from_millis(ms), wall);
    }

    fn boots(&self) -> VecDeque<Boot> {
        self.0.book().nodes.get(&node()).cloned().unwrap_or_default()
    }
}

fn discover(stage: Stage) -> Seen {
    Seen::of(Service::Dhcp, "asked").reaching(stage).beginning(3)
}

fn fetched(stage: Stage, bytes: u64, of: u64) -> Seen {
    let took = Duration::from_millis(300);
    Seen::of(Service::Tftp, "undionly.kpxe").reaching(stage).moving(bytes, of, took)
}

#[test]
fn a_boot_goes_through_its_stages() {
    let clock = Clock::new();
    clock.at(0, discover(Stage::Firmware));
    clock.at(10, discover(Stage::Firmware));
    clock.at(400, fetched(Stage::Program, 70_000, 70_000));
    clock.at(900, discover(Stage::Ipxe));
    clock.at(1000, Seen::of(Service::Http, "script").reaching(Stage::Script));
    clock.at(2000, Seen::of(Service::Http, "kernel").reaching(Stage::Kernel));
    clock.at(2500, Seen::of(Service::Http, "kernel").reaching(Stage::Kernel));
    clock.at(9000, Seen::of(Service::Agent, "attached").reaching(Stage::Attached));
    let boots = clock.boots();
    assert_eq!(boots.len(), 1);
    let boot = &boots[0];
    assert_eq!(boot.stage, Stage::Attached);
    assert_eq!(
        boot.reached_ms,
        [
            (Stage::Firmware, 0),
            (Stage::Program, 400),
            (Stage::Ipxe, 900),
            (Stage::Script, 1000),
            (Stage::Kernel, 2000),
            (Stage::Attached, 9000)
        ]
    );
    let steps: Vec<_> = boot.steps.iter().map(|s| (s.at_ms, s.repeated)).collect();
    assert_eq!(steps, [(0, 1), (100, 0), (900, 0), (1000, 0), (2000, 1), (9000, 0)]);
}

#[test]
fn a_boot_begins_when_the_last_one_had_got_further() {
    let clock = Clock::new();
    clock.at(0, Seen::of(Service::Http, "nothing has begun").reaching(Stage::Kernel));
    assert!(clock.boots().is_empty());
    for round in 0..6 {
        clock.at(round * 10_000, discover(Stage::Firmware));
        clock.at(round * 10_000 + 1, fetched(Stage::Program, 1, 2));
    }
    let boots = clock.boots();
    assert_eq!(boots.len(), BOOTS);
    let text = boots[0].diagnosis.as_deref().expect("it began anew");
    assert!(text.contains("undionly.kpxe stopped after byte 1 of 2"), "{text}");
    // iPXE in a ROM begins with itself, and again after it had its script.
    clock.at(70_000, discover(Stage::Ipxe));
    assert_eq!(clock.boots().back().map(|b| b.began_ms), boots.back().map(|b| b.began_ms));
    clock.at(71_000, Seen::of(Service::Http, "script").reaching(Stage::Script));
    clock.at(72_000, discover(Stage::Ipxe));
    assert_eq!(clock.boots().back().map(|boot| boot.began_ms), Some(1_700_000_072_000));
}

#[test]
fn another_boot_window_is_another_boot() {
    let clock = Clock::new();
    let asked = |ms, stage, window| {
        let seen = Seen::of(Service::Dhcp, "asked").reaching(stage).beginning(window);
        clock.at(ms, seen);
        clock.boots().iter().map(|boot| boot.window).collect::<Vec<_>>()
    };
    // It is given to its first member between ROM and iPXE, and to the next before it came further.
    assert_eq!(asked(0, Stage::Firmware, 0), [0]);
    assert_eq!(asked(1000, Stage::Ipxe, 4), [4]);
    assert_eq!(asked(2000, Stage::Ipxe, 4), [4]);
    assert_eq!(asked(3000, Stage::Firmware, 5), [4, 5]);
}

#[test]
fn a_long_silence_ends_a_boot_and_a_transfer_that_goes_on_is_none() {
    let clock = Clock::new();
    clock.at(0, discover(Stage::Firmware));
    clock.at(60_000, discover(Stage::Firmware));
    assert_eq!(clock.boots().len(), 1);
    clock.at(200_000, discover(Stage::Firmware));
    assert_eq!(clock.boots().len(), 2);
    let traces = Traces::default();
    let ago = Instant::now().checked_sub(Duration::from_secs(500)).expect("up");
    traces.note_at(&node(), discover(Stage::Firmware), ago, SystemTime::now());
    traces.touch(&node());
    assert_eq!(traces.boots(&node())[0].diagnosis, "");
}

#[test]
fn memory_is_bounded() {
    let clock = Clock::new();
    let refused = |step: u64| Seen::of(Service::Http, format!("refused {step}")).failed();
    clock.at(0, discover(Stage::Ipxe));
    (0..1000).for_each(|step| clock.at(step, refused(step)));
    assert_eq!(clock.boots()[0].steps.len(), FEW_STEPS, "nothing was fetched");
    let other = Clock::new();
    other.at(0, discover(Stage::Ipxe));
    other.at(0, Seen::of(Service::Http, "script").reaching(Stage::Script));
    (0..1000).for_each(|step| other.at(step, refused(step)));
    let boot = &other.boots()[0];
    assert_eq!(boot.steps.len(), STEPS);
    assert_eq!(boot.dropped as usize, 1002 - STEPS);
    let texts: Vec<_> = boot.steps.iter().map(|step| step.text.as_str()).collect();
    assert_eq!((texts[1], texts[STEPS - 1]), ("script", "refused 999"), "the first and the newest");
    for other in 0..NODES {
        let name = format!("m{other}").parse().expect("a name");
        let now = clock.1 + Duration::from_secs(10 + other as u64);
        clock.0.note_at(&name, discover(Stage::Firmware), now, SystemTime::now());
    }
    let known = clock.0.book().nodes.len();
    assert!((NODES / 2..=NODES).contains(&known), "{known}");
    assert!(clock.boots().is_empty(), "it had only asked by DHCP, and long ago");
    let newest = format!("m{}", NODES - 1).parse().expect("a name");
    assert_eq!(clock.0.boots(&newest).len(), 1);
}

#[test]
fn each_place_where_a_boot_can_end_has_its_words() {
    let words = |stage: Stage| {
        let clock = Clock::new();
        clock.at(0, discover(Stage::Firmware));
        clock.at(1, Seen::of(Service::Http, "something").reaching(stage));
        let boot = clock.boots()[0].clone();
        assert_eq!(diagnosis::of(&boot, Duration::from_secs(1), true), None, "it is early");
        diagnosis::of(&boot, Duration::from_secs(500), true)
    };
    let mut all = [
        words(Stage::Firmware),
        words(Stage::Program),
        words(Stage::Ipxe),
        words(Stage::Script),
        words(Stage::Kernel),
        words(Stage::Login),
        words(Stage::Attached),
    ];
    assert!(all.iter().all(|text| text.as_deref().is_some_and(|t| t.ends_with("(for 500 s)"))));
    all.sort();
    assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
    assert_eq!(words(Stage::Healthy), None);
}

#[test]
fn a_refusal_is_the_reason_if_nothing_came_after_it() {
    let clock = Clock::new();
    clock.at(0, discover(Stage::Firmware));
    clock.at(1, Seen::of(Service::Iscsi, "login refused: CHAP").failed());
    let boot = clock.boots()[0].clone();
    let text = diagnosis::of(&boot, Duration::from_secs(30), true).expect("stuck");
    assert!(text.starts_with("login refused: CHAP, and nothing came after it"), "{text}");
    clock.at(2, Seen::of(Service::Http, "script").reaching(Stage::Script));
    let boot = clock.boots()[0].clone();
    let text = diagnosis::of(&boot, Duration::from_secs(50), true).expect("stuck");
    assert!(text.contains("fetched no kernel"), "{text}");
}

#[test]
fn silence_after_the_last_that_can_be_seen_is_no_fault() {
    let clock = Clock::new();
    clock.at(0, discover(Stage::Ipxe));
    clock.at(1, Seen::of(Service::Http, "script").reaching(Stage::Script).last());
    let later = clock.1 + Duration::from_secs(1000);
    assert_eq!(clock.boots()[0].judge(later, true), None);
    clock.at(2, Seen::of(Service::Iscsi, "logged in"));
    assert_eq!(clock.boots()[0].judge(later, true), None);
    for ms in 3..5 {
        clock.at(ms, discover(Stage::Ipxe));
        clock.at(ms, Seen::of(Service::Http, "script").reaching(Stage::Script).last());
    }
    assert_eq!(diagnosis::loops(&clock.boots()), None, "it restarts, and that is all");
    clock.at(7, discover(Stage::Ipxe));
    let later = later + Duration::from_secs(1000);
    assert!(clock.boots()[3].judge(later, true).is_some(), "the next boot is judged");
}

#[test]
fn a_stuck_boot_is_told_once_and_a_loop_too() {
    let traces = Traces::default();
    let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).expect("up");
    let note = |seconds, seen| traces.note_at(&node(), seen, ago(seconds), SystemTime::now());
    note(50, discover(Stage::Firmware));
    assert_eq!(traces.stalled().len(), 1);
    assert_eq!(traces.stalled().len(), 0, "it is told already");
    for round in [40, 30, 20] {
        note(round, fetched(Stage::Program, 2, 2));
        note(round - 1, discover(Stage::Firmware));
    }
    let stalled = traces.stalled();
    assert!(stalled[0].1.contains("4 boots"), "{stalled:?}");
    assert_eq!(traces.stalled().len(), 0);
}

#[test]
fn what_is_shown_is_what_was_noted() {
    let clock = Clock::new();
    clock.at(0, discover(Stage::Firmware));
    clock.at(1300, fetched(Stage::Program, 30_000, 70_000));
    clock.at(1400, Seen::of(Service::Dhcp, "asked"));
    clock.at(1500, Seen::of(Service::Dhcp, "asked"));
    let [boot] = &clock.0.boots(&node())[..] else { panic!("no boot") };
    assert_eq!((boot.began_ms, boot.window), (1_700_000_000_000, 3));
    assert_eq!((boot.stage.as_str(), boot.diagnosis.as_str()), ("program", ""));
    let reached: Vec<_> = boot.reached.iter().map(|r| (r.stage.as_str(), r.at_ms)).collect();
    assert_eq!(reached, [("firmware", 0), ("program", 1300)]);
    let moved = common::BootTransfer { bytes: 30_000, of: 70_000, took_ms: 300 };
    let step = |at_ms, service: &str, text: &str| common::BootStep {
        at_ms,
        service: service.to_owned(),
        text: text.to_owned(),
        ..common::BootStep::default()
    };
    let broken = common::BootStep {
        moved: Some(moved),
        failed: true,
        ..step(1000, "tftp", "undionly.kpxe")
    };
    let again = common::BootStep { repeats: 1, ..step(1400, "dhcp", "asked") };
    assert_eq!(boot.steps, [step(0, "dhcp", "asked"), broken, again]);
    let [(name, listed)] = &clock.0.all()[..] else { panic!("no node") };
    assert_eq!((name, listed.steps.len(), &listed.reached), (&node(), 0, &boot.reached));
}

#[test]
fn metrics_count_what_was_noted() {
    let clock = Clock::new();
    clock.at(0, discover(Stage::Firmware));
    clock.at(700, fetched(Stage::Program, 7, 7));
    clock.at(9000, Seen::of(Service::Agent, "healthy").reaching(Stage::Healthy));
    clock.0.metrics().dhcp(true);
    clock.0.metrics().sent(Service::Tftp, 7);
    let text = clock.0.metrics().render(Gauges { sessions: 3, ..Gauges::default() }).expect("text");
    for line in [
        "croft_bootd_boots_total 1",
        "croft_bootd_boots_healthy_total 1",
        "croft_bootd_boot_stage_seconds_bucket{le=\"1.0\",stage=\"program\"} 1",
        "croft_bootd_boot_stage_seconds_sum{stage=\"program\"} 0.7",
        "croft_bootd_dhcp_requests_total{answered=\"yes\"} 1",
        "croft_bootd_sent_bytes_total{service=\"tftp\"} 7",
        "croft_bootd_iscsi_sessions 3",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}
