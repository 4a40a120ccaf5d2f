//! Clusters of three servers on this machine.

use std::net::SocketAddr;

use crate::{EtcdServer, NatsServer, free_address};

/// Servers of a cluster: the least that outlasts the loss of one.
const SIZE: usize = 3;

/// Three NATS servers with JetStream, named `n0` to `n2`.
#[derive(Debug)]
pub struct NatsCluster {
    /// The servers.
    pub servers: Vec<NatsServer>,
}

/// Three members of an etcd cluster.
#[derive(Debug)]
pub struct EtcdCluster {
    /// The members.
    pub members: Vec<EtcdServer>,
}

impl NatsCluster {
    /// Three running servers. JetStream answers once they have chosen a leader, some seconds later.
    pub fn started() -> Self {
        let routes: Vec<SocketAddr> = (0..SIZE).map(|_| free_address()).collect();
        let urls: Vec<String> = routes.iter().map(|route| format!("nats://{route}")).collect();
        let server = |(number, route): (usize, &SocketAddr)| {
            let mut server = NatsServer::prepare();
            server.0.arguments.extend([
                format!("--name=n{number}"),
                "--cluster_name=test".into(),
                format!("--cluster=nats://{route}"),
                format!("--routes={}", urls.join(",")),
            ]);
            server.start();
            server
        };
        Self {
            servers: routes.iter().enumerate().map(server).collect(),
        }
    }

    /// The addresses of all servers.
    pub fn url(&self) -> String {
        let urls: Vec<_> = self.servers.iter().map(NatsServer::url).collect();
        urls.join(",")
    }

    /// The server with this name.
    pub fn named(&mut self, name: &str) -> &mut NatsServer {
        let number: usize = name
            .trim_start_matches('n')
            .parse()
            .expect("a name of this cluster");
        &mut self.servers[number]
    }
}

impl EtcdCluster {
    /// Three running members with a leader.
    pub fn started() -> Self {
        let peers: Vec<SocketAddr> = (0..SIZE).map(|_| free_address()).collect();
        let names: Vec<_> = peers
            .iter()
            .enumerate()
            .map(|(number, peer)| format!("e{number}=http://{peer}"))
            .collect();
        let member = |(number, peer): (usize, &SocketAddr)| {
            let mut member = EtcdServer::prepare();
            let arguments = &mut member.0.arguments;
            arguments
                .retain(|argument| !argument.contains("peer-urls") && !argument.contains("initial-cluster"));
            arguments.extend([
                format!("--name=e{number}"),
                format!("--listen-peer-urls=http://{peer}"),
                format!("--initial-advertise-peer-urls=http://{peer}"),
                format!("--initial-cluster={}", names.join(",")),
            ]);
            member.0.spawn();
            member
        };
        let mut members: Vec<_> = peers.iter().enumerate().map(member).collect();
        members.iter_mut().for_each(|member| member.0.becomes_ready());
        Self { members }
    }

    /// `host:port` of each member.
    pub fn addresses(&self) -> Vec<String> {
        self.members.iter().map(EtcdServer::address).collect()
    }
}
