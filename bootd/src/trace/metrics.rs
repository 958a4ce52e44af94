//! Counters and histograms of boots, for Prometheus (text format 1.0 of OpenMetrics).

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{Service, Stage};

/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0];

type Label = [(&'static str, &'static str); 1];

/// What is only known when somebody looks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Gauges {
    /// Seconds since this process started.
    pub uptime: u64,
    /// Open iSCSI sessions.
    pub sessions: u64,
    /// Agents whose stream is open.
    pub agents: u64,
    /// Events that were not stored.
    pub lost_events: u64,
}

/// See the module.
pub(crate) struct Metrics {
    registry: Registry,
    began: Counter,
    healthy: Counter,
    stalled: Counter,
    stages: Family<Label, Histogram>,
    dhcp: Family<Label, Counter>,
    sent: Family<Label, Counter>,
    /// Set and rendered by one reader at a time.
    gauges: Mutex<[Gauge; 4]>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("began", &self.began.get()).finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("croft_bootd");
        let (began, healthy, stalled) =
            (Counter::default(), Counter::default(), Counter::default());
        registry.register("boots", "Boots that began", began.clone());
        registry.register("boots_healthy", "Boots that got to a health check", healthy.clone());
        registry.register(
            "boots_stalled",
            "Boots that got stuck, or began too often",
            stalled.clone(),
        );
        let stages: Family<Label, Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let help = "Seconds from the stage before to this one";
        registry.register("boot_stage_seconds", help, stages.clone());
        let (dhcp, sent): (Family<Label, Counter>, Family<Label, Counter>) = Default::default();
        registry.register("dhcp_requests", "DHCP requests that could be read", dhcp.clone());
        registry.register("sent_bytes", "Bytes of files handed to the network", sent.clone());
        let gauges: [Gauge; 4] = Default::default();
        let named = [
            ("uptime_seconds", "Seconds since the start"),
            ("iscsi_sessions", "Open iSCSI sessions"),
            ("agents", "Agents that are attached"),
            ("events_not_stored", "Events that came too fast to be stored"),
        ];
        for ((name, help), gauge) in named.into_iter().zip(&gauges) {
            registry.register(name, help, gauge.clone());
        }
        let gauges = Mutex::new(gauges);
        Self { registry, began, healthy, stalled, stages, dhcp, sent, gauges }
    }
}

impl Metrics {
    pub(super) fn began(&self) {
        self.began.inc();
    }

    pub(super) fn stalled(&self) {
        self.stalled.inc();
    }

    pub(super) fn reached(&self, stage: Stage, after: Duration) {
        self.stages.get_or_create(&[("stage", stage.name())]).observe(after.as_secs_f64());
        if stage == Stage::Healthy {
            self.healthy.inc();
        }
    }

    /// Counts a DHCP request.
    pub(crate) fn dhcp(&self, answered: bool) {
        let answered = if answered { "yes" } else { "no" };
        self.dhcp.get_or_create(&[("answered", answered)]).inc();
    }

    /// Counts bytes of a transfer.
    pub(crate) fn sent(&self, service: Service, bytes: u64) {
        let service = if service == Service::Tftp { "tftp" } else { "http" };
        self.sent.get_or_create(&[("service", service)]).inc_by(bytes);
    }

    /// All of them as text.
    ///
    /// # Errors
    /// None that is known: the format's own.
    pub(crate) fn render(&self, now: Gauges) -> Result<String, fmt::Error> {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        let values = [now.uptime, now.sessions, now.agents, now.lost_events];
        for (gauge, value) in gauges.iter().zip(values) {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
