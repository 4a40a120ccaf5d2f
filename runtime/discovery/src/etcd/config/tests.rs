use std::io::Write;

use tempfile::NamedTempFile;

use super::*;

async fn refused(config: EtcdConfig) -> String {
    Settings::new(config).await.unwrap_err().to_string()
}

fn at(endpoint: &str) -> EtcdConfig {
    EtcdConfig {
        endpoints: vec![endpoint.into()],
        ..EtcdConfig::default()
    }
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[tokio::test]
async fn endpoints_are_with_and_without_scheme() {
    let config = EtcdConfig {
        endpoints: ["etcd-0:2379", "http://[::1]:2379/", "https://etcd.example:443"]
            .map(Into::into)
            .into(),
        lease_ttl: Duration::from_millis(1500),
        ..EtcdConfig::default()
    };
    let settings = Settings::new(config).await.unwrap();
    let urls: Vec<String> = settings.endpoints.iter().map(Endpoint::to_string).collect();
    assert_eq!(
        urls,
        [
            "http://etcd-0:2379",
            "http://[::1]:2379",
            "https://etcd.example:443"
        ]
    );
    assert_eq!(
        settings.lease_ttl,
        Duration::from_secs(2),
        "etcd counts whole seconds"
    );
    let secure = EtcdConfig {
        tls: Some(EtcdTls::default()),
        ..at("etcd-0:2379")
    };
    let settings = Settings::new(secure).await.unwrap();
    assert_eq!(settings.endpoints[0].to_string(), "https://etcd-0:2379");
}

#[tokio::test]
async fn invalid_settings_are_refused_with_a_reason() {
    for (endpoint, reason) in [
        ("etcd", "host:port"),
        ("etcd:port", "host:port"),
        (":2379", "host:port"),
        ("http://etcd:2379/v3", "host:port"),
        ("nats://etcd:4222", "neither http nor https"),
        ("et cd:2379", "not an etcd endpoint"),
    ] {
        let message = refused(at(endpoint)).await;
        assert!(
            message.contains(reason) && message.contains("give host:port"),
            "{message}"
        );
    }
    let message = refused(EtcdConfig {
        endpoints: Vec::new(),
        ..EtcdConfig::default()
    });
    assert!(message.await.contains("at least one"));
    let message = refused(EtcdConfig {
        namespace: "a/b".into(),
        ..EtcdConfig::default()
    });
    assert!(message.await.contains("\"a/b\""));
    let message = refused(EtcdConfig {
        lease_ttl: Duration::from_millis(999),
        ..EtcdConfig::default()
    });
    assert!(message.await.contains("999ms"));
}

#[tokio::test]
async fn tls_files_are_read_before_the_first_connection() {
    let with = |tls| EtcdConfig {
        tls: Some(tls),
        ..at("127.0.0.1:1")
    };
    let message = refused(with(EtcdTls {
        ca: Some("does-not-exist.pem".into()),
        certificate: None,
    }));
    assert!(message.await.contains("does-not-exist.pem"));
    let prose = file("no certificate");
    let message = refused(with(EtcdTls {
        ca: Some(prose.path().into()),
        certificate: None,
    }));
    assert!(message.await.contains("not a PEM file"));
    let broken = file("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let message = refused(with(EtcdTls {
        ca: None,
        certificate: Some((broken.path().into(), broken.path().into())),
    }));
    assert!(message.await.contains("TLS settings"));
    let message = refused(EtcdConfig {
        tls: Some(EtcdTls::default()),
        ..at("http://127.0.0.1:1")
    });
    assert!(message.await.contains("http does not use TLS"));
}

#[tokio::test]
async fn passwords_are_not_shown() {
    let config = EtcdConfig {
        user: Some(("me".into(), "secret".into())),
        ..at("http://me:secret@etcd:2379")
    };
    assert!(format!("{:?}", config.user).contains("secret"));
    let shown = format!("{config:?}");
    assert!(!shown.contains("secret") && shown.contains("me"), "{shown}");
    let message = refused(config).await;
    assert!(
        !message.contains("secret") && message.contains("***@etcd:2379"),
        "{message}"
    );
}
