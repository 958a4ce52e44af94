//! Who calls. The certificate authority signs certificates of boot servers, too: being signed by it
//! is not enough, the caller's certificate must name control.

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use tonic::{Request, Status};

/// The name in control's client certificate.
const CONTROL: &str = "control.croft.internal";

/// Refuses everybody but control.
///
/// # Errors
/// PERMISSION_DENIED for another certificate.
pub(super) fn check<T>(request: &Request<T>) -> Result<(), Status> {
    let certificates = request.peer_certs();
    let shown = certificates.as_ref().and_then(|chain| chain.first());
    if shown.is_some_and(names_control) {
        return Ok(());
    }
    tracing::warn!(peer = ?request.remote_addr(), "somebody else than control called");
    Err(Status::permission_denied("only control may call here, with the certificate made for it"))
}

fn names_control(certificate: &CertificateDer<'_>) -> bool {
    let Ok(name) = ServerName::try_from(CONTROL) else { return false };
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certificate_that_names_control_is_controls() {
        let named = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("made");
            names_control(made.cert.der())
        };
        assert!(named(CONTROL));
        assert!(!named("bootd0.croft.internal"));
        assert!(!names_control(&CertificateDer::from(b"nonsense".to_vec())));
    }
}
