//! The certificate authorities that a client trusts.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer,
        pem::{self, PemObject},
    },
};

/// Largest file of authorities. A machine's whole store has some 250 KiB.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Why there are no authorities to trust.
#[derive(Debug, thiserror::Error)]
pub enum AuthoritiesError {
    /// The file cannot be read.
    #[error("cannot read {0}")]
    Unreadable(PathBuf, #[source] io::Error),
    /// The file is too large for one of certificates.
    #[error("{0} has {1} bytes; a file of certificate authorities has at most {MAX_FILE_BYTES}")]
    TooLarge(PathBuf, u64),
    /// The file has no certificate.
    #[error("{0} has no certificate; give a PEM file with -----BEGIN CERTIFICATE-----")]
    NoCertificate(PathBuf),
    /// The file has a certificate that is none.
    #[error("{0} has a certificate that cannot be read: {1}")]
    Damaged(PathBuf, String),
    /// The machine has no store, or an empty one.
    #[error("this machine has no certificate authorities to trust{0}; install the package ca-certificates")]
    NoStore(String),
}

/// The authorities of the machine's store, and those of the PEM file `own`.
///
/// # Errors
/// The file is wrong, or there is no file and the store is empty.
pub(crate) fn authorities(own: Option<&Path>) -> Result<RootCertStore, AuthoritiesError> {
    let mut authorities = RootCertStore::empty();
    // The file first: what is wrong with it is certain, whatever the store holds.
    if let Some(path) = own {
        add_file(&mut authorities, path)?;
    }
    let store = rustls_native_certs::load_native_certs();
    // A store may hold certificates of old forms, which rustls does not read.
    authorities.add_parsable_certificates(store.certs);
    if authorities.is_empty() {
        let reason = store.errors.first().map(|error| format!(" ({error})"));
        return Err(AuthoritiesError::NoStore(reason.unwrap_or_default()));
    }
    Ok(authorities)
}

fn add_file(authorities: &mut RootCertStore, path: &Path) -> Result<(), AuthoritiesError> {
    let unreadable = |error| AuthoritiesError::Unreadable(path.into(), error);
    let damaged = |reason: String| AuthoritiesError::Damaged(path.into(), reason);
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(AuthoritiesError::TooLarge(path.into(), bytes));
    }
    let text = std::fs::read(path).map_err(unreadable)?;
    let certificates: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    for certificate in certificates.map_err(|error| damaged(error.to_string()))? {
        authorities
            .add(certificate)
            .map_err(|error| damaged(error.to_string()))?;
    }
    match authorities.is_empty() {
        true => Err(AuthoritiesError::NoCertificate(path.into())),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_trusted_is_named_with_what_is_wrong() {
        let folder = tempfile::TempDir::new().unwrap();
        let refused = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let error = authorities(Some(&path)).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            error
        };
        assert!(refused("prose.pem", "no certificate").contains("BEGIN CERTIFICATE"));
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(refused("damaged.pem", damaged).contains("cannot be read"));
        let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        assert!(refused("cut.pem", cut).contains("cannot be read"));
        let large = " ".repeat(usize::try_from(MAX_FILE_BYTES).unwrap() + 1);
        assert!(refused("large.pem", &large).contains("at most"));
        let error = authorities(Some(&folder.path().join("absent.pem"))).unwrap_err();
        assert!(error.to_string().contains("absent.pem"), "{error}");
    }

    #[test]
    fn the_certificates_of_a_file_are_trusted_beside_the_machines() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("own.pem");
        let own = rcgen::generate_simple_self_signed(["engine".to_owned()]).unwrap();
        std::fs::write(&path, own.cert.pem()).unwrap();
        let of_machine = authorities(None).map_or(0, |store| store.len());
        assert_eq!(authorities(Some(&path)).unwrap().len(), of_machine + 1);
    }
}
