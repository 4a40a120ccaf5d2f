//! How many connections a listener holds: in all, and from one address.
//!
//! Without the second limit one client could take every connection that the first one allows.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use metrics::{counter, describe_counter};

const REFUSED: &str = "signalbox_http_connections_refused_total";

/// Gives the installed recorder the help text of the metric.
pub(crate) fn describe() {
    describe_counter!(
        REFUSED,
        "Connections refused because their address has as many as it may"
    );
}

/// The connections of one listener, shared by its threads.
#[derive(Debug)]
pub(crate) struct AddressLimit {
    /// Most connections from one address; `None` for no limit.
    most: Option<usize>,
    connections: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection that counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Place(Option<(Arc<AddressLimit>, IpAddr)>);

impl AddressLimit {
    pub(crate) fn new(most: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            most,
            connections: Mutex::default(),
        })
    }

    /// Counts a connection from `address`; `None` if the address has as many as it may.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let Some(most) = self.most else {
            return Some(Place(None));
        };
        let client = client(address);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(client).or_default();
        if *count >= most {
            drop(connections);
            counter!(REFUSED).increment(1);
            return None;
        }
        *count += 1;
        Some(Place(Some((Arc::clone(self), client))))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((limit, client)) = self.0.take() else {
            return;
        };
        let mut connections = limit.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&client);
            }
        }
    }
}

/// What one client can hold: an address of IPv4, or the 64 bits of IPv6 that a client's network has.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(network.into())
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_gets_its_places_back_and_another_one_has_its_own() {
        let limit = AddressLimit::new(Some(2));
        let (a, b) = (address("192.0.2.1"), address("192.0.2.2"));
        let places = [limit.admit(a), limit.admit(address("::ffff:192.0.2.1"))];
        assert!(places.iter().all(Option::is_some));
        assert!(
            limit.admit(a).is_none(),
            "an IPv4 address within IPv6 is the same client"
        );
        assert!(limit.admit(b).is_some());
        drop(places);
        assert!(limit.admit(a).is_some());
        assert!(
            limit.connections.lock().unwrap().is_empty(),
            "nothing is kept of clients without connections"
        );
    }

    #[test]
    fn the_addresses_of_an_ipv6_network_are_one_client() {
        let limit = AddressLimit::new(Some(1));
        let place = limit.admit(address("2001:db8::1"));
        assert!(place.is_some() && limit.admit(address("2001:db8::ffff:2")).is_none());
        assert!(limit.admit(address("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let limit = AddressLimit::new(None);
        let places: Vec<_> = (0..100).map(|_| limit.admit(address("192.0.2.1"))).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(limit.connections.lock().unwrap().is_empty());
    }
}
