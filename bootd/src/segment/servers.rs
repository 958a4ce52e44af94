//! The servers of one segment: started together, and all ended when one ends.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::SegmentName;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::router;
use super::sockets::Sockets;
use crate::alone::Clerk;
use crate::boot::Desk;
use crate::collector::{self, CollectorCertificate};
use crate::desired::Segment;
use crate::iscsi::Target;
use crate::tftp::{self, Programs};
use crate::{dhcp, http};

/// What servers work with, the same for all segments.
#[derive(Debug)]
pub(crate) struct Servers {
    pub desk: Arc<Desk>,
    /// Who answers DHCP without control.
    pub clerk: Option<Arc<Clerk>>,
    pub programs: Arc<Programs>,
    pub certificate: Arc<CollectorCertificate>,
    pub target: Target,
}

/// How long connections may take to end when bootd stops.
const GRACE: Duration = Duration::from_secs(5);

/// How long they may take when their segment goes: long enough to tell agents, and no longer. Nodes
/// that were switched off end nothing, and meanwhile other segments wait for the supervisor.
const PARTING: Duration = Duration::from_millis(100);

type Ended = (&'static str, Result<(), Box<dyn std::error::Error + Send + Sync>>);

impl Servers {
    /// Serves a segment until `cancel`, or until one of its servers fails; returns its name. If
    /// `gone` is cancelled before, the segment is no more: its connections are soon cut off.
    pub(super) async fn serve(
        self: Arc<Self>,
        segment: Segment,
        sockets: Sockets,
        cancel: CancellationToken,
        gone: CancellationToken,
    ) -> SegmentName {
        let name = segment.name;
        let mut servers = self.start(&name, sockets, &cancel);
        if let Some(ended) = servers.join_next().await {
            report(&name, ended, &cancel);
        }
        // One is of little use without the others; the supervisor starts all of them again.
        cancel.cancel();
        let others = async {
            while let Some(ended) = servers.join_next().await {
                report(&name, ended, &cancel);
            }
        };
        let grace = if gone.is_cancelled() { PARTING } else { GRACE };
        if tokio::time::timeout(grace, others).await.is_err() {
            tracing::info!(segment = %name, "some connections did not end in time, cutting them off");
            servers.shutdown().await;
        }
        name
    }

    fn start(
        &self,
        name: &SegmentName,
        sockets: Sockets,
        cancel: &CancellationToken,
    ) -> JoinSet<Ended> {
        let mut servers = JoinSet::new();
        let (desk, programs) = (&self.desk, &self.programs);
        let who = match &self.clerk {
            Some(clerk) => dhcp::Who::Clerk(Arc::clone(clerk)),
            None => dhcp::Who::Desk(Arc::clone(desk)),
        };
        if let Some(socket) = sockets.boot_server {
            let port = dhcp::Port::BootServer;
            let boot_server = dhcp::serve(socket, port, name.clone(), who.clone(), cancel.clone());
            servers.spawn(async { ("boot server", boot_server.await.map_err(Into::into)) });
        }
        let port = dhcp::Port::Dhcp;
        let dhcp = dhcp::serve(sockets.dhcp, port, name.clone(), who, cancel.clone());
        servers.spawn(async { ("DHCP", dhcp.await.map_err(Into::into)) });
        let tftp = tftp::serve(
            sockets.tftp,
            name.clone(),
            Arc::clone(programs),
            Arc::clone(desk),
            cancel.clone(),
        );
        servers.spawn(async { ("TFTP", tftp.await.map_err(Into::into)) });
        let site = http::Site {
            segment: name.clone(),
            desk: Arc::clone(desk),
            clerk: self.clerk.clone(),
            programs: Arc::clone(programs),
        };
        let http = http::serve(sockets.http, http::router(site), http::gate(), cancel.clone());
        servers.spawn(async { ("HTTP", http.await.map_err(Into::into)) });
        let collector = collector::serve(
            sockets.collector,
            name.clone(),
            Arc::clone(desk),
            Arc::clone(&self.certificate),
            cancel.clone(),
        );
        servers.spawn(async { ("collector", collector.await.map_err(Into::into)) });
        let (target, segment, token) = (self.target.clone(), name.clone(), cancel.clone());
        servers.spawn(async move {
            target.serve(sockets.iscsi, segment, token).await;
            ("iSCSI", Ok(()))
        });
        if let Some(socket) = sockets.router {
            let router = router::serve(socket, sockets.index, name.clone(), cancel.clone());
            servers.spawn(async { ("router advertisements", router.await.map_err(Into::into)) });
        }
        servers
    }
}

fn report(segment: &SegmentName, ended: Result<Ended, JoinError>, cancel: &CancellationToken) {
    match ended {
        Ok((_, Ok(()))) if cancel.is_cancelled() => {}
        Ok((server, Ok(()))) => tracing::error!(%segment, server, "server ended"),
        Ok((server, Err(error))) => {
            let error = &*error as &dyn std::error::Error;
            tracing::error!(%segment, server, error, "server failed");
        }
        Err(error) => tracing::error!(%segment, %error, "server was cut off"),
    }
}
