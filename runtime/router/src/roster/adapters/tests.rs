use signalbox_protocol::{WorkerCard, WorkerEpoch};

use super::*;
use crate::{
    roster::{AdapterReport, Roster, RosterView},
    test_support::{card, join},
};

/// Joins a ready worker of a model, which has reported these adapters.
fn serve(roster: &mut Roster, worker: &str, model: &str, adapters: &[&str]) {
    let card = Arc::new(WorkerCard {
        model: model.into(),
        address: worker.into(),
        ..(*card(worker, 1)).clone()
    });
    join(roster, &card);
    assert_eq!(report(roster, worker, adapters), AdapterReport::First);
}

fn report(roster: &mut Roster, worker: &str, adapters: &[&str]) -> AdapterReport {
    let adapter = |name: &&str| LoraAdapter {
        name: (*name).into(),
        root: Some(format!("/{worker}/{name}")),
    };
    let adapters: Vec<_> = adapters.iter().map(adapter).collect();
    roster.report_adapters(&worker.parse().unwrap(), WorkerEpoch(1), &adapters)
}

fn leave(roster: &mut Roster, worker: &str) {
    roster.leave(&worker.parse().unwrap(), WorkerEpoch(1)).unwrap();
}

/// The next view, and what has become unserved: worker, adapter, reason.
fn settled(roster: &mut Roster) -> (RosterView, Vec<(String, String, NotServed)>) {
    let unserved = roster.settle_adapters().into_iter();
    let unserved = unserved.map(|adapter| (adapter.worker.to_string(), adapter.name, adapter.reason));
    let unserved = unserved.collect();
    (roster.view(), unserved)
}

/// The base model of a requested name and the workers that serve it.
fn meaning(view: &RosterView, name: &str) -> Option<(String, Vec<String>)> {
    let entry = view.requested(name)?;
    assert_eq!(entry.requested_name(), name);
    let workers = entry.workers.iter();
    let ids = workers.map(|worker| worker.card.id.to_string());
    Some((entry.name.clone(), ids.collect()))
}

fn means(base: &str, workers: &[&str]) -> Option<(String, Vec<String>)> {
    let workers = workers.iter().map(|worker| (*worker).to_owned());
    Some((base.into(), workers.collect()))
}

#[test]
fn an_adapter_is_served_by_the_workers_that_have_it() {
    let mut roster = Roster::default();
    serve(&mut roster, "a", "m", &["sql", "chat"]);
    serve(&mut roster, "b", "m", &["chat"]);
    serve(&mut roster, "c", "m", &[]);
    let (view, unserved) = settled(&mut roster);
    assert_eq!(unserved, []);
    assert_eq!(meaning(&view, "sql"), means("m", &["a"]));
    assert_eq!(meaning(&view, "chat"), means("m", &["a", "b"]));
    assert_eq!(meaning(&view, "m"), means("m", &["a", "b", "c"]));
    assert_eq!(meaning(&view, "other"), None);
    let sql = view.requested("sql").unwrap();
    assert_eq!(sql.adapter.as_ref().unwrap().root.as_deref(), Some("/a/sql"));
    let base = view.requested("m").unwrap();
    assert!(
        !Arc::ptr_eq(&sql.decisions, &base.decisions),
        "round robin over the adapter's workers counts the adapter's requests"
    );
}

#[test]
fn an_adapter_that_is_loaded_later_is_served_and_one_that_is_unloaded_is_forgotten() {
    let mut roster = Roster::default();
    serve(&mut roster, "a", "m", &[]);
    serve(&mut roster, "b", "m", &["sql"]);
    assert_eq!(report(&mut roster, "a", &["sql"]), AdapterReport::Changed);
    assert_eq!(report(&mut roster, "a", &["sql"]), AdapterReport::Ignored);
    let (view, _) = settled(&mut roster);
    assert_eq!(meaning(&view, "sql"), means("m", &["a", "b"]));
    let decisions = view.requested("sql").unwrap().decisions.clone();
    report(&mut roster, "b", &[]);
    let (view, _) = settled(&mut roster);
    assert_eq!(meaning(&view, "sql"), means("m", &["a"]));
    assert!(Arc::ptr_eq(&decisions, &view.requested("sql").unwrap().decisions));
    report(&mut roster, "a", &[]);
    let (view, _) = settled(&mut roster);
    assert_eq!(meaning(&view, "sql"), None);
    assert_eq!(meaning(&view, "m"), means("m", &["a", "b"]));
}

#[test]
fn an_adapter_stays_known_when_its_last_worker_leaves_or_drains() {
    let mut roster = Roster::default();
    serve(&mut roster, "a", "m", &["sql"]);
    serve(&mut roster, "b", "m", &["sql"]);
    settled(&mut roster);
    roster.drain("a");
    leave(&mut roster, "b");
    let (view, _) = settled(&mut roster);
    assert_eq!(meaning(&view, "sql"), means("m", &[]));
}

#[test]
fn a_report_of_another_incarnation_changes_nothing() {
    let mut roster = Roster::default();
    join(&mut roster, &card("a", 2));
    assert_eq!(report(&mut roster, "a", &["sql"]), AdapterReport::Ignored);
    assert_eq!(report(&mut roster, "b", &["sql"]), AdapterReport::Ignored);
    assert_eq!(meaning(&settled(&mut roster).0, "sql"), None);
}

#[test]
fn the_name_of_a_base_model_means_the_base_model() {
    let mut roster = Roster::default();
    serve(&mut roster, "a", "m", &["n"]);
    assert_eq!(meaning(&settled(&mut roster).0, "n"), means("m", &["a"]));
    serve(&mut roster, "b", "n", &[]);
    let (view, unserved) = settled(&mut roster);
    assert_eq!(unserved, [("a".into(), "n".into(), NotServed::BaseModel)]);
    assert_eq!(meaning(&view, "n"), means("n", &["b"]));
    assert_eq!(settled(&mut roster).1, [], "it is reported once");
    leave(&mut roster, "b");
    assert_eq!(
        meaning(&settled(&mut roster).0, "n"),
        means("n", &[]),
        "a model that restarts is not answered by another one meanwhile"
    );
}

#[test]
fn an_adapter_name_means_the_base_model_that_had_it_first() {
    let mut roster = Roster::default();
    serve(&mut roster, "b", "m", &["sql"]);
    settled(&mut roster);
    serve(&mut roster, "a", "n", &["sql"]);
    let (view, unserved) = settled(&mut roster);
    assert_eq!(
        unserved,
        [("a".into(), "sql".into(), NotServed::OtherBase("m".into()))]
    );
    assert_eq!(meaning(&view, "sql"), means("m", &["b"]));
    // Another worker of the first model keeps the name with it.
    serve(&mut roster, "c", "m", &["sql"]);
    report(&mut roster, "b", &[]);
    assert_eq!(meaning(&settled(&mut roster).0, "sql"), means("m", &["c"]));
    leave(&mut roster, "c");
    let (view, unserved) = settled(&mut roster);
    assert_eq!((meaning(&view, "sql"), unserved), (means("n", &["a"]), vec![]));
}

#[test]
fn names_beyond_the_most_take_the_place_of_those_that_no_worker_has() {
    let mut roster = Roster::default();
    let names: Vec<String> = (0..MAX_ADAPTERS).map(|number| format!("a{number:04}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    serve(&mut roster, "a", "m", &names);
    assert_eq!(settled(&mut roster).1, []);
    serve(&mut roster, "b", "m", &["new"]);
    let (view, unserved) = settled(&mut roster);
    assert_eq!(unserved, [("b".into(), "new".into(), NotServed::Full)]);
    assert_eq!(meaning(&view, "new"), None);
    leave(&mut roster, "a");
    let (view, unserved) = settled(&mut roster);
    assert_eq!((meaning(&view, "new"), unserved), (means("m", &["b"]), vec![]));
    assert_eq!(view.adapters.len(), 1);
}

#[test]
fn a_restored_roster_has_the_adapters_of_the_view() {
    let mut roster = Roster::default();
    serve(&mut roster, "a", "n", &["sql"]);
    settled(&mut roster);
    serve(&mut roster, "0", "m", &["sql"]);
    let (view, _) = settled(&mut roster);
    let mut restored = Roster::restore(&view);
    let (after, _) = settled(&mut restored);
    assert_eq!(meaning(&after, "sql"), means("n", &["a"]));
    let decisions = |view: &RosterView| view.requested("sql").unwrap().decisions.clone();
    assert!(Arc::ptr_eq(&decisions(&after), &decisions(&view)));
    let report = restored.report_adapters(&"a".parse().unwrap(), WorkerEpoch(1), &[]);
    assert_eq!(report, AdapterReport::Changed, "the adapters of before are known");
}
