//! Users and passwords.

use etcd_client::{Permission, PermissionType};

use super::*;

#[tokio::test]
async fn a_user_needs_access_to_its_namespace_only() {
    let server = EtcdServer::started();
    let config = EtcdConfig {
        user: Some(("signalbox".into(), "open".into())),
        ..etcd_config(&server)
    };
    let mut root = raw(&server).await;
    root.user_add("root", "rules", None).await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.role_add("signalbox").await.unwrap();
    let prefix = format!("/signalbox/{}/", config.namespace);
    let own = Permission::new(PermissionType::Readwrite, prefix).with_prefix();
    root.role_grant_permission("signalbox", own).await.unwrap();
    root.user_add("signalbox", "sesame", None).await.unwrap();
    root.user_grant_role("signalbox", "signalbox").await.unwrap();
    root.auth_enable().await.unwrap();

    let refused = start(&config).await;
    let mut status = refused.status();
    let failed = status.wait_for(|status| status.detail.contains("authentication failed"));
    let failed = tokio::time::timeout(PATIENCE, failed)
        .await
        .expect("in time")
        .unwrap()
        .clone();
    assert_eq!(failed.state, PlaneState::Connecting);
    assert!(!failed.detail.contains("open"), "{}", failed.detail);

    let right = EtcdConfig {
        user: Some(("signalbox".into(), "sesame".into())),
        ..config
    };
    let (discovery, other) = (start(&right).await, start(&right).await);
    let mut watch = other.watch();
    let _a = discovery.register(card("a", 1)).unwrap();
    let b = discovery.register(card("b", 1)).unwrap();
    expect(&mut watch, [joined("a", 1), joined("b", 1)]).await;
    drop(b);
    expect(&mut watch, [left("b", 1)]).await;
    assert!(discovery.withdraw().await);
    expect(&mut watch, [left("a", 1)]).await;
    becomes(&*discovery, PlaneState::Up).await;
}
