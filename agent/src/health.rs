//! Runs the member's health check, which tells control and the balancers when it may serve.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use croft_proto::common::{Health, HealthCheck};
use croft_proto::{HEALTH_INTERVAL_MS, HEALTH_TIMEOUT_MS, HealthTarget, InvalidHealthCheck};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Until a check succeeds for the first time it is tried this often, so that a member that has
/// just booted is put to work at once.
const EAGER: Duration = Duration::from_millis(200);

/// Failures in a row that make a healthy member unhealthy: a single slow answer is no failure.
const FALL: u32 = 2;

/// A check that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    target: HealthTarget,
    interval: Duration,
    timeout: Duration,
}

/// The check with defaults for the times that were not given, and with those that this version
/// does not accept brought to the nearest that it does: another version's check still runs.
pub(crate) fn with_times(given: &HealthCheck) -> HealthCheck {
    let within = |given: u32, default, range: RangeInclusive<u32>| {
        if given == 0 { default } else { given.clamp(*range.start(), *range.end()) }
    };
    HealthCheck {
        interval_ms: within(given.interval_ms, 1000, HEALTH_INTERVAL_MS),
        timeout_ms: within(given.timeout_ms, 1000, HEALTH_TIMEOUT_MS),
        ..given.clone()
    }
}

impl Check {
    /// Checks what bootd gave; no check at all is `NONE`.
    pub fn new(given: Option<&HealthCheck>) -> Result<Self, InvalidHealthCheck> {
        let given = with_times(given.unwrap_or(&HealthCheck::default()));
        Ok(Self {
            target: HealthTarget::try_from(&given)?,
            interval: Duration::from_millis(given.interval_ms.into()),
            timeout: Duration::from_millis(given.timeout_ms.into()),
        })
    }

    /// One check of the service at `address`.
    pub async fn run(&self, address: Ipv4Addr) -> Result<(), String> {
        let checked = async {
            match &self.target {
                HealthTarget::None => Ok(()),
                HealthTarget::Tcp(port) => connect(address, *port).await.map(drop),
                HealthTarget::Http(port, path) => get(address, *port, path.as_str()).await,
            }
        };
        match timeout(self.timeout, checked).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {} ms", self.timeout.as_millis())),
        }
    }
}

async fn connect(address: Ipv4Addr, port: u16) -> Result<TcpStream, String> {
    let at = SocketAddr::from((address, port));
    TcpStream::connect(at).await.map_err(|e| format!("cannot connect to {at}: {e}"))
}

/// A GET by HTTP/1.0 (RFC 1945): one request, one answer, and only its first line matters.
async fn get(address: Ipv4Addr, port: u16, path: &str) -> Result<(), String> {
    let mut stream = connect(address, port).await?;
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nUser-Agent: croft-agent\r\n\r\n");
    let lost = |e| format!("the connection to port {port} broke: {e}");
    stream.write_all(request.as_bytes()).await.map_err(lost)?;
    let mut answer = [0; 64];
    let mut filled = 0;
    while filled < answer.len() && !answer[..filled].contains(&b'\n') {
        match stream.read(&mut answer[filled..]).await.map_err(lost)? {
            0 => break,
            read => filled += read,
        }
    }
    match parse_status(&answer[..filled]) {
        Some(200..=299) => Ok(()),
        Some(status) => Err(format!("GET {path} answers {status}")),
        None => Err(format!("GET {path} is not answered in HTTP")),
    }
}

/// The status of `HTTP/1.x NNN …` (RFC 9112 section 4).
fn parse_status(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let [minor, b' ', status @ ..] = rest else { return None };
    let (digits, end) = (status.get(..3)?, status.get(3));
    let delimited = matches!(end, None | Some(b' ' | b'\r' | b'\n'));
    if !minor.is_ascii_digit() || !delimited || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0')))
}

/// What the newest checks showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthReport {
    pub health: Health,
    /// Why it is not healthy; empty otherwise.
    pub detail: String,
}

impl HealthReport {
    /// No check has ended yet.
    pub fn pending() -> Self {
        Self { health: Health::Pending, detail: String::new() }
    }

    fn healthy() -> Self {
        Self { health: Health::Healthy, detail: String::new() }
    }

    /// Not healthy, and why.
    pub fn unhealthy(detail: impl Into<String>) -> Self {
        Self { health: Health::Unhealthy, detail: detail.into() }
    }
}

/// The check to run and the address of the service.
pub(crate) type Order = Option<(Check, Ipv4Addr)>;

/// Runs whatever check is ordered, until cancelled.
pub(crate) async fn run(
    mut orders: watch::Receiver<Order>,
    reports: watch::Sender<HealthReport>,
    cancel: CancellationToken,
) {
    let mut failures = 0;
    loop {
        let order = orders.borrow_and_update().clone();
        let started = Instant::now();
        let pause = match &order {
            None => Duration::MAX,
            Some((check, address)) => {
                let outcome = tokio::select! {
                    () = cancel.cancelled() => return,
                    outcome = check.run(*address) => outcome,
                };
                failures = if outcome.is_ok() { 0 } else { failures + 1 };
                reports.send_if_modified(|report| note(report, outcome, failures));
                let eager = reports.borrow().health != Health::Healthy;
                if eager { check.interval.min(EAGER) } else { check.interval }
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = orders.changed() => match changed {
                Ok(()) => {
                    failures = 0;
                    reports.send_replace(HealthReport::pending());
                }
                Err(_) => return,
            },
            () = sleep(pause.saturating_sub(started.elapsed())), if order.is_some() => {}
        }
    }
}

/// Moves the report by one outcome; true if it changed.
fn note(report: &mut HealthReport, outcome: Result<(), String>, failures: u32) -> bool {
    let next = match outcome {
        Ok(()) => HealthReport::healthy(),
        // A service that is still starting is not ill yet, and one slow answer is not either.
        Err(_) if report.health == Health::Healthy && failures < FALL => return false,
        Err(detail) => HealthReport::unhealthy(detail),
    };
    let changed = *report != next;
    if changed {
        tracing::info!(health = ?next.health, detail = next.detail, "health changed");
        *report = next;
    }
    changed
}

#[cfg(test)]
mod tests {
    use croft_proto::common::health_check::Kind;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    use super::*;

    fn http(port: u16, path: &str) -> HealthCheck {
        HealthCheck {
            kind: Kind::Http.into(),
            port: port.into(),
            path: path.to_owned(),
            interval_ms: 100,
            timeout_ms: 200,
        }
    }

    /// Answers each connection with the next of these; after the last it is silent.
    async fn serve(answers: Vec<&'static str>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = [0; 256];
                let read = stream.read(&mut request).await.expect("a request");
                assert!(request[..read].starts_with(b"GET /health HTTP/1.0\r\n"));
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
            std::future::pending::<()>().await;
            drop(listener);
        });
        port
    }

    #[tokio::test]
    async fn an_http_check_asks_for_success_in_time() {
        let answers = vec!["HTTP/1.0 204 No Content\r\n\r\n", "HTTP/1.1 503 no\r\n\r\n", "hello\n"];
        let port = serve(answers).await;
        let check = Check::new(Some(&http(port, "/health"))).expect("valid");
        let at = Ipv4Addr::LOCALHOST;
        assert_eq!(check.run(at).await, Ok(()));
        assert_eq!(check.run(at).await, Err("GET /health answers 503".to_owned()));
        assert_eq!(check.run(at).await, Err("GET /health is not answered in HTTP".to_owned()));
        assert_eq!(check.run(at).await, Err("no answer within 200 ms".to_owned()));
    }

    #[tokio::test]
    async fn the_runner_reports_the_first_success_and_a_lasting_failure() {
        let port = serve(vec!["HTTP/1.0 200 OK\r\n\r\n"]).await;
        let check = Check::new(Some(&http(port, "/health"))).expect("valid");
        let (_orders, order) = watch::channel(Some((check, Ipv4Addr::LOCALHOST)));
        let (reports, mut report) = watch::channel(HealthReport::pending());
        let cancel = CancellationToken::new();
        let runner = tokio::spawn(run(order, reports, cancel.clone()));
        let deadline = Duration::from_secs(10);
        for wanted in [Health::Healthy, Health::Unhealthy] {
            let reached = report.wait_for(|report| report.health == wanted);
            timeout(deadline, reached).await.expect("in time").expect("the runner lives");
        }
        assert_eq!(report.borrow().detail, "no answer within 200 ms");
        cancel.cancel();
        timeout(deadline, runner).await.expect("it ends").expect("without a panic");
    }

    #[test]
    fn one_failure_of_a_healthy_member_is_not_reported_and_the_second_is() {
        let mut report = HealthReport::healthy();
        assert!(!note(&mut report, Err("slow".to_owned()), 1));
        assert!(note(&mut report, Err("slow".to_owned()), 2));
        assert_eq!(report, HealthReport::unhealthy("slow"));
        assert!(note(&mut report, Ok(()), 0));
    }

    #[test]
    fn checks_that_could_reach_beyond_a_request_line_are_refused() {
        for path in
            ["", "health", "/a b", "/a\r\nHost: x", "/\u{e4}", &format!("/{}", "a".repeat(512))]
        {
            let refused = Check::new(Some(&http(80, path)));
            assert!(matches!(refused, Err(InvalidHealthCheck::Path(_))), "{path:?}");
        }
        assert_eq!(Check::new(Some(&http(0, "/"))), Err(InvalidHealthCheck::Port(0)));
        let odd = HealthCheck { kind: 77, ..HealthCheck::default() };
        assert_eq!(Check::new(Some(&odd)), Err(InvalidHealthCheck::Kind(77)));
        assert_eq!(Check::new(None).expect("no check").target, HealthTarget::None);
    }

    proptest! {
        /// Whatever control and bootd accept runs as it was written.
        #[test]
        fn what_the_common_rule_accepts_runs_as_given(
            kind in 0i32..5, port in 0u32..70_000, path in "/?[ -~]{0,12}",
            interval_ms in 0u32..700_000, timeout_ms in 0u32..70_000,
        ) {
            let given = HealthCheck { kind, port, path, interval_ms, timeout_ms };
            if let Ok(target) = HealthTarget::try_from(&given) {
                let check = Check::new(Some(&given)).expect("accepted by bootd");
                prop_assert_eq!(&check.target, &target);
                if target != HealthTarget::None {
                    prop_assert_eq!(check.interval.as_millis(), u128::from(interval_ms));
                    prop_assert_eq!(check.timeout.as_millis(), u128::from(timeout_ms));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_status_line_breaks_it(bytes in any::<Vec<u8>>(), tail in any::<Vec<u8>>()) {
            let _ = parse_status(&bytes);
            let _ = parse_status(&[b"HTTP/1.1 ".as_slice(), &tail].concat());
        }

        #[test]
        fn every_status_is_read(status in 100..1000_u16, minor in 0..2_u8) {
            let line = format!("HTTP/1.{minor} {status} reason\r\n");
            prop_assert_eq!(parse_status(line.as_bytes()), Some(status));
        }
    }
}
