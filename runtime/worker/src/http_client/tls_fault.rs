//! Why a TLS handshake failed, for a person.

use std::{error::Error, fmt, io};

use rustls::{CertificateError, InvalidMessage};

/// What is wrong with a server's TLS. Trying again does not mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TlsFault {
    /// The certificate is from an authority that is not trusted.
    UnknownIssuer,
    /// The server answers without TLS.
    NoTls,
    /// Anything else, as rustls describes it.
    Other(String),
}

impl TlsFault {
    /// Looks for a fault of TLS among the causes of `error`.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = error;
        loop {
            if let Some(fault) = cause.downcast_ref::<rustls::Error>() {
                return Some(Self::from(fault));
            }
            // An I/O error's source is not the error that it wraps, but the source of that one.
            let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = match wrapped {
                Some(wrapped) => wrapped,
                None => cause.source()?,
            };
        }
    }
}

impl From<&rustls::Error> for TlsFault {
    fn from(error: &rustls::Error) -> Self {
        match error {
            // A bad signature: a trusted authority has the issuer's name, and another key.
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => Self::UnknownIssuer,
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NoTls,
            // `openssl req -x509` makes such a certificate by default. rustls describes the fault by an identifier.
            rustls::Error::InvalidCertificate(CertificateError::Other(error))
                if error.to_string().contains("CaUsedAsEndEntity") =>
            {
                let reason = "the certificate is one of an authority (CA:TRUE), which a server must not present; \
                              give the server one with basicConstraints=CA:FALSE";
                Self::Other(reason.into())
            }
            error => Self::Other(error.to_string()),
        }
    }
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownIssuer => {
                f.write_str("the certificate is from an authority that is not trusted here")
            }
            Self::NoTls => f.write_str("the server does not speak TLS"),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}
