//! `Relay`: a server of the person's own that carries packets between drives which share no network. It sees who talks with
//! whom and when, and nothing of what they say.
//!
//! Its address is `https://HOST[:PORT]`, whose certificate one of the authorities compiled in must vouch for; or
//! `https://HOST[:PORT]#sha256=…` with the SHA-256 of its certificate (64 hexadecimal digits): then it is that certificate and
//! no other, whoever made it and until when, which suits a relay without a public name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use iroh::tls::CaTlsConfig;
use iroh::{RelayUrl, TransportAddr};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

use super::error::PeerError;
use crate::digest::Sha256Digest;

/// What stands between the address and the certificate's digest.
const PIN: &str = "#sha256=";

/// A relay, and how its certificate is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    url: RelayUrl,
    certificate: Option<Sha256Digest>,
}

impl FromStr for Relay {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        let invalid = || PeerError::Relay { url: text.into() };
        let (address, certificate) = match text.split_once(PIN) {
            Some((address, digest)) => (address, Some(digest.parse().map_err(|_| invalid())?)),
            None => (text, None),
        };
        let url: RelayUrl = address.parse().map_err(|_| invalid())?;
        if url.scheme() == "https" && url.fragment().is_none() { Ok(Self { url, certificate }) } else { Err(invalid()) }
    }
}

/// The address alone, as a person is told of it.
impl fmt::Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str())
    }
}

impl Relay {
    pub(crate) fn url(&self) -> RelayUrl {
        self.url.clone()
    }

    pub(crate) fn address(&self) -> TransportAddr {
        TransportAddr::Relay(self.url())
    }

    /// What its certificate is checked against.
    pub(super) fn tls(&self) -> CaTlsConfig {
        let Some(certificate) = self.certificate else { return CaTlsConfig::embedded() };
        CaTlsConfig::custom_server_cert_verifier(Arc::new(move |provider| {
            Ok(Arc::new(Pinned { certificate, provider }))
        }))
    }
}

/// Takes one certificate, and no other.
#[derive(Debug)]
struct Pinned {
    certificate: Sha256Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match Sha256Digest::of(end_entity) == self.certificate {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_alone_or_with_the_digest_of_a_certificate() {
        let digest = Sha256Digest::of(b"a certificate");
        let plain: Relay = "https://relay.example.org:8443".parse().expect("it is one");
        assert_eq!((plain.to_string().as_str(), plain.certificate), ("https://relay.example.org:8443/", None));
        let pinned: Relay = format!("https://10.0.0.1{PIN}{digest}").parse().expect("it is one");
        assert_eq!((pinned.to_string().as_str(), pinned.certificate), ("https://10.0.0.1/", Some(digest)));
        for text in [
            "",
            "relay.example.org",
            "http://relay.example.org",
            "https://relay.example.org#sha256=",
            "https://relay.example.org#sha256=00",
            "https://relay.example.org#x",
            &format!("https://relay.example.org{PIN}{digest}0"),
            &format!("https://relay.example.org{PIN}{digest}{PIN}{digest}"),
            &format!("http://relay.example.org{PIN}{digest}"),
        ] {
            let refused = text.parse::<Relay>();
            assert!(matches!(refused, Err(PeerError::Relay { .. })), "{text}: {refused:?}");
        }
    }
}
