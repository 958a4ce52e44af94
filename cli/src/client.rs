//! The connection to control: TLS to the name that its certificate has, the token on each call.

use std::time::Duration;

use croft_proto::api::control_client::ControlClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Response, Status};

use crate::fault::{Fault, root_cause};
use crate::profile::Profile;

/// Name in control's certificate, whatever address is dialled.
const SERVER_NAME: &str = "control.croft.internal";

/// A call that takes longer has failed; the longest (applying a grid) take a second or two.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// Adds the token.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Control's API.
pub type Api = ControlClient<InterceptedService<Channel, Bearer>>;

/// A connection, and its address for messages.
pub struct Control {
    /// Control's API.
    pub api: Api,
    server: String,
}

impl Control {
    /// Dials control.
    ///
    /// # Errors
    /// The profile cannot be used, or control is not there.
    pub async fn connect(profile: &Profile) -> Result<Self, Fault> {
        let unusable =
            |what, reason| Fault::Endpoint { profile: profile.path.clone(), what, reason };
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&profile.ca))
            .domain_name(SERVER_NAME)
            .timeout(Duration::from_secs(5));
        let endpoint = Endpoint::from_shared(profile.server.clone())
            .map_err(|e| unusable("server", root_cause(&e)))?
            .tls_config(tls)
            .map_err(|e| unusable("ca", root_cause(&e)))?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        let mut token: MetadataValue<Ascii> = format!("Bearer {}", profile.token.expose())
            .parse()
            .map_err(|_| unusable("token", "it is not printable text".to_owned()))?;
        token.set_sensitive(true);
        let channel = endpoint.connect().await.map_err(|e| Fault::Unreachable {
            server: profile.server.clone(),
            reason: root_cause(&e),
        })?;
        let api = ControlClient::with_interceptor(channel, Bearer(token))
            .max_decoding_message_size(croft_proto::MAX_MESSAGE_BYTES);
        Ok(Self { api, server: profile.server.clone() })
    }

    /// The answer within a call's outcome.
    ///
    /// # Errors
    /// The call failed.
    pub fn answer<T>(&self, outcome: Result<Response<T>, Status>) -> Result<T, Fault> {
        outcome.map(Response::into_inner).map_err(|status| self.fault(status))
    }

    /// A failed call as what the operator reads.
    pub fn fault(&self, status: Status) -> Fault {
        Fault::of(status, &self.server)
    }
}

/// A call that ends in time.
pub fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}
