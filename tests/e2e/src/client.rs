//! An open-loop HTTP client: it asks at a fixed rate whatever the answers do, a new connection for
//! each request, and counts every failure.
//!
//! It runs in the internet namespace as a process of its own (`croft-e2e client`) and writes a
//! [`Report`] as one JSON line a second; [`Traffic`] starts and reads it. It ends when its
//! standard input does, after the answers that are still due.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use croft_rack::Rack;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Requests under way at once; past it the client would measure itself.
const MAX_IN_FLIGHT: usize = 1000;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// What to ask.
    #[arg(long)]
    url: String,
    /// Requests per second.
    #[arg(long)]
    rate: f64,
    /// Milliseconds until a request counts as failed.
    #[arg(long, default_value_t = 15_000)]
    timeout_ms: u64,
}

/// What the client has seen since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub sent: u64,
    pub answered: u64,
    pub failed: u64,
    /// Answers by the member that gave them.
    pub members: BTreeMap<String, u64>,
    /// The newest failures, at most ten.
    pub failures: Vec<String>,
    /// The slowest answer, in milliseconds.
    pub slowest_ms: u64,
}

impl Report {
    fn answer(&mut self, member: String, took: Duration) {
        self.answered += 1;
        self.slowest_ms = self.slowest_ms.max(took.as_millis() as u64);
        *self.members.entry(member).or_default() += 1;
    }

    fn failure(&mut self, at: Duration, why: &str) {
        self.failed += 1;
        if self.failures.len() == 10 {
            self.failures.remove(0);
        }
        self.failures.push(format!("{:.1} s: {why}", at.as_secs_f64()));
    }
}

/// The name by which a member answers: the `X-Croft-Member` header.
const MEMBER_HEADER: &str = "x-croft-member";

async fn ask(client: &reqwest::Client, url: &str) -> anyhow::Result<String> {
    let answer = client.get(url).send().await?.error_for_status()?;
    let member = answer
        .headers()
        .get(MEMBER_HEADER)
        .and_then(|value| value.to_str().ok())
        .context("the answer names no member")?
        .to_owned();
    answer.bytes().await?;
    Ok(member)
}

/// Runs as the process in the internet namespace.
pub async fn client(options: Options) -> anyhow::Result<()> {
    if !(options.rate > 0.0 && options.rate <= 2000.0) {
        bail!("--rate {} is not within 0 to 2000 requests per second", options.rate);
    }
    let http = reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_millis(options.timeout_ms))
        .build()?;
    let report = Arc::new(Mutex::new(Report::default()));
    let start = Instant::now();
    let mut ticks = interval(Duration::from_secs_f64(1.0 / options.rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut reports = interval(Duration::from_secs(1));
    let mut asking = JoinSet::new();
    let mut input = tokio::io::stdin();
    let mut byte = [0; 1];
    let print = || -> anyhow::Result<()> {
        let report = report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        println!("{}", serde_json::to_string(&report)?);
        Ok(())
    };
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                if asking.len() >= MAX_IN_FLIGHT {
                    bail!("{MAX_IN_FLIGHT} requests are under way: the server does not keep up");
                }
                let (http, url, report) = (http.clone(), options.url.clone(), report.clone());
                report.lock().unwrap_or_else(PoisonError::into_inner).sent += 1;
                asking.spawn(async move {
                    let sent = Instant::now();
                    let outcome = ask(&http, &url).await;
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    match outcome {
                        Ok(member) => report.answer(member, sent.elapsed()),
                        Err(error) => report.failure(start.elapsed(), &format!("{error:#}")),
                    }
                });
            }
            Some(ended) = asking.join_next() => ended?,
            _ = reports.tick() => print()?,
            got = input.read(&mut byte) => {
                if got? == 0 {
                    break;
                }
            }
        }
    }
    while let Some(ended) = asking.join_next().await {
        ended?;
    }
    print()
}

/// A client process and what it reported last.
#[derive(Debug)]
pub struct Traffic {
    child: Child,
    input: Option<ChildStdin>,
    reader: JoinHandle<anyhow::Result<()>>,
    report: Arc<Mutex<Report>>,
}

impl Traffic {
    /// Starts asking `url` from the internet, `rate` times a second.
    pub fn start(rack: &Rack, url: &str, rate: f64) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let mut child = rack
            .internet_command(&program)
            .args(["client", "--url", url, "--rate", &rate.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the client in the internet namespace")?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("the client has no output")?;
        let report = Arc::new(Mutex::new(Report::default()));
        let shared = report.clone();
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Some(line) = lines.next_line().await? {
                let new = serde_json::from_str(&line)
                    .with_context(|| format!("the client wrote {line:?}"))?;
                *shared.lock().unwrap_or_else(PoisonError::into_inner) = new;
            }
            Ok(())
        });
        Ok(Self { child, input, reader, report })
    }

    /// What it reported last; up to a second old.
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it and returns its last report, once every request has been answered or has failed.
    pub async fn stop(mut self) -> anyhow::Result<Report> {
        drop(self.input.take());
        let status = timeout(Duration::from_secs(30), self.child.wait())
            .await
            .context("the client does not end")??;
        self.reader.await??;
        if !status.success() {
            bail!("the client ended with {status}");
        }
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(report)
    }
}
