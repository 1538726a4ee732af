//! Files of certificates that change by themselves: certificates, keys, OCSP responses, authorities of clients and their
//! revocation lists. Looked at each second; what has changed is read when it was stable for one look, and taken as a whole
//! or not at all. Connections stay, and so do the keys of session tickets.

mod stapling;
mod watched;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs as provider,
    pki_types::{CertificateDer, SignatureVerificationAlgorithm},
};

pub use self::stapling::NoStaple;
use self::{
    stapling::Stapling,
    watched::{Settled, Watched},
};
use super::{
    tickets::TicketKeys,
    tls::{Serving, Tls, stapled},
};
use crate::{
    config::{
        RenewalError,
        model::{Certificate, ClientAuth, ListenerTls},
        renew_certificate, renew_client_auth,
    },
    policy::ocsp::Question,
    telemetry::{
        events::{Events, News},
        metrics::{CertificateMetrics, Metrics},
    },
    types::Name,
};

/// All certificates of a process, and the TLS of its listeners.
pub struct Certificates {
    tickets: Arc<TicketKeys>,
    metrics: Arc<Metrics>,
    events: Arc<Events>,
    known: Mutex<Known>,
    /// Of the signatures of OCSP responses.
    algorithms: &'static [&'static dyn SignatureVerificationAlgorithm],
}

#[derive(Default)]
struct Known {
    certificates: BTreeMap<Name, Watched<Arc<Certificate>>>,
    /// By their files; the mode is each listener's own.
    clients: Vec<Watched<ClientAuth>>,
    /// Each for as long as the listener is there.
    served: Vec<Weak<Tls>>,
    stapling: Stapling,
    /// Certificates that nobody can be asked about, which was said.
    given_up: BTreeMap<Name, CertificateDer<'static>>,
}

impl Certificates {
    /// Knows none yet.
    pub fn new(tickets: Arc<TicketKeys>, metrics: Arc<Metrics>, events: Arc<Events>) -> Self {
        let algorithms = provider::default_provider().signature_verification_algorithms.all;
        Self { tickets, metrics, events, known: Mutex::default(), algorithms }
    }

    /// The TLS of a listener. It follows its files until it is dropped.
    ///
    /// # Errors
    /// The crypto provider does not support what is asked for.
    pub fn tls(&self, model: &ListenerTls) -> Result<Arc<Tls>, rustls::Error> {
        let mut known = self.lock();
        let certificates = model.certificates.iter().map(|certificate| known.stapling.filled(certificate)).collect();
        let serving = Serving::build(&ListenerTls { certificates, ..model.clone() }, &self.tickets, now())?;
        let tls = Arc::new(Tls::new(serving));
        known.served.push(Arc::downgrade(&tls));
        if let Some(clients) = &model.client_auth {
            // What was read last goes for all.
            known.clients.retain(|watched| client_files(&watched.current) != client_files(clients));
            let (ca, crl) = client_files(clients);
            let files = [Some(ca), crl].into_iter().flatten().cloned().collect();
            self.tell_next_update(clients);
            known.clients.push(Watched::new(clients.clone(), files));
        }
        Ok(tls)
    }

    /// As [`Certificates::tls`], for handshakes that are made elsewhere: what to make the next one with.
    ///
    /// # Errors
    /// As there.
    pub fn follow_config(
        &self,
        model: &ListenerTls,
    ) -> Result<Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>, rustls::Error> {
        let tls = self.tls(model)?;
        Ok(Arc::new(move || tls.config()))
    }

    /// These certificates are configured from now on, and have been read just now.
    pub fn follow(&self, certificates: &BTreeMap<Name, Arc<Certificate>>) {
        let mut known = self.lock();
        let filled = certificates.values().map(|certificate| known.stapling.filled(certificate));
        let filled: Vec<_> = certificates.keys().zip(filled).collect();
        known.certificates = filled
            .into_iter()
            .map(|(name, certificate)| {
                let ocsp = certificate.ocsp.as_ref().and_then(|ocsp| ocsp.path.as_ref());
                let files = [Some(&certificate.cert_path), Some(&certificate.key_path), ocsp];
                self.handle(&certificate).not_after.set(certificate.not_after);
                (name.clone(), Watched::new(certificate.clone(), files.into_iter().flatten().cloned().collect()))
            })
            .collect();
        self.metrics.retain_certificates(|name| certificates.contains_key(name));
    }

    /// Looks at all files; to be called once a second, where it may block.
    pub fn look(&self) {
        let now = now();
        let mut fresh = Vec::new();
        let mut known = self.lock();
        let Known { certificates, clients, served, stapling, .. } = &mut *known;
        let served: Vec<Arc<Tls>> = {
            served.retain(|tls| tls.strong_count() > 0);
            served.iter().filter_map(Weak::upgrade).collect()
        };
        for watched in certificates.values_mut() {
            self.look_at_certificate(watched, (stapling, &served), now, &mut fresh);
        }
        let used = |clients: &ClientAuth| {
            let by = |tls: &Arc<Tls>| {
                tls.serving().model.client_auth.as_ref().map(client_files) == Some(client_files(clients))
            };
            served.iter().any(by)
        };
        clients.retain(|watched| used(&watched.current));
        let lists =
            |file: &Path| clients.iter().any(|watched| client_files(&watched.current).1.is_some_and(|crl| crl == file));
        self.metrics.retain_crls(lists);
        for watched in &mut *clients {
            self.look_at_clients(watched, &mut fresh);
        }
        for tls in &served {
            self.bring_up_to_date(tls, clients, certificates, now);
        }
        // Not before it is so.
        fresh.iter().for_each(|name| self.reloaded(name));
    }

    /// Adds what was read anew to `fresh`.
    fn look_at_certificate(
        &self,
        watched: &mut Watched<Arc<Certificate>>,
        (stapling, served): (&Stapling, &[Arc<Tls>]),
        now: i64,
        fresh: &mut Vec<String>,
    ) {
        if watched.look() {
            let read = renew_certificate(&watched.current);
            let passing = match &read {
                Ok(read) => read.without_ocsp,
                Err(error) => error.is_passing(),
            };
            let read = read.map(|read| (stapling.filled(&Arc::new(read.certificate)), read.remarks));
            let (good, settled) = (read.is_ok(), watched.settle(passing));
            let name = watched.current.name.clone();
            match read {
                Ok((certificate, remarks)) if same(&certificate, &watched.current) => {
                    // Of the files themselves, such as who may read the key.
                    if settled == Settled::Changed {
                        remarks.iter().for_each(|remark| self.remark(&format!("certificate {name}"), remark));
                    }
                }
                Ok((certificate, remarks)) => {
                    remarks.iter().for_each(|remark| self.remark(&format!("certificate {name}"), remark));
                    let mut lost: Vec<&str> = lost_names(&watched.current, &certificate).collect();
                    lost.retain(|lost| served.iter().any(|tls| refuses(tls, &certificate, lost)));
                    if !lost.is_empty() {
                        let remark =
                            format!("it is not for {} any more, and `strict_sni` refuses them", lost.join(", "));
                        self.remark(&format!("certificate {name}"), &remark);
                    }
                    watched.current = certificate;
                    self.handle(&watched.current).not_after.set(watched.current.not_after);
                    fresh.push(name.to_string());
                }
                Err(error) => self.failed(watched, name.to_string(), &error, settled),
            }
            if good {
                all_clear(watched, fresh);
            }
        }
        if watched.current.ocsp.is_none() && !watched.current.ocsp_fetch {
            return;
        }
        let holds = watched.current.ocsp.as_ref().is_some_and(|ocsp| ocsp.holds(now));
        self.handle(&watched.current).stapled.set(i64::from(holds));
        if watched.stapled.replace(holds) == Some(true) && !holds {
            let name = watched.current.name.as_str();
            log::warn!(
                "certificate {name}: the OCSP response is out of date or withdrawn, and is not sent to clients any more"
            );
            self.tell("certificate.ocsp_out_of_date", format!("{name}: sent to clients without it"), String::new());
        }
    }

    /// As [`Certificates::look_at_certificate`].
    fn look_at_clients(&self, watched: &mut Watched<ClientAuth>, fresh: &mut Vec<String>) {
        if !watched.look() {
            return;
        }
        let read = renew_client_auth(&watched.current);
        let settled = watched.settle(read.as_ref().is_err_and(RenewalError::is_passing));
        match read {
            Ok((clients, remark)) => {
                let before = std::mem::replace(&mut watched.current, clients);
                let (ca, crl) = client_files(&watched.current);
                let named = |file: &PathBuf| file.display().to_string();
                if watched.current.ca.certificates != before.ca.certificates {
                    fresh.push(named(ca));
                }
                let lists = |clients: &ClientAuth| clients.crl.as_ref().map(|crl| crl.lists.clone());
                if lists(&watched.current) != lists(&before) {
                    fresh.extend(crl.map(named));
                    if let (Some(remark), Some(crl)) = (remark, crl) {
                        self.remark(&named(crl), &remark);
                    }
                    self.tell_next_update(&watched.current);
                }
                all_clear(watched, fresh);
            }
            Err(error) => self.failed(watched, error.file().display().to_string(), &error, settled),
        }
    }

    fn tell_next_update(&self, clients: &ClientAuth) {
        if let Some(crl) = &clients.crl {
            self.metrics.crl(&crl.path).set(crl.next_update.unwrap_or(0));
        }
    }

    /// Handshakes from now on are made with what the files hold.
    fn bring_up_to_date(
        &self,
        tls: &Tls,
        clients: &[Watched<ClientAuth>],
        certificates: &BTreeMap<Name, Watched<Arc<Certificate>>>,
        now: i64,
    ) {
        let serving = tls.serving();
        let newest = |used: &Arc<Certificate>| {
            let watched = certificates.get(&used.name).filter(|watched| watched.is_settled());
            let newest = watched.map(|watched| &watched.current).filter(|newest| same_files(newest, used));
            newest.filter(|newest| !Arc::ptr_eq(newest, used) && !same(newest, used)).unwrap_or(used).clone()
        };
        let newest_clients = |used: &ClientAuth| {
            let watched = clients.iter().find(|watched| client_files(&watched.current) == client_files(used));
            let newest = watched.filter(|watched| watched.is_settled()).map_or(used, |watched| &watched.current);
            ClientAuth { mode: used.mode, ..newest.clone() }
        };
        let model = ListenerTls {
            certificates: serving.model.certificates.iter().map(newest).collect(),
            client_auth: serving.model.client_auth.as_ref().map(newest_clients),
            ..serving.model.clone()
        };
        let alike = model.certificates.iter().zip(&serving.model.certificates).all(|(new, old)| Arc::ptr_eq(new, old))
            && same_clients(model.client_auth.as_ref(), serving.model.client_auth.as_ref())
            && stapled(&model, now) == serving.stapled;
        if alike {
            return;
        }
        match Serving::build(&model, &self.tickets, now) {
            Ok(serving) => tls.change(serving),
            // Each part has been checked when it was read.
            Err(error) => log::error!("a listener goes on with the certificates it has: {error}"),
        }
    }

    /// What OCSP responders are to be asked now; to be called about once a second. Each is asked for until its answer is
    /// brought.
    pub fn questions(&self) -> Vec<(Name, Arc<Question>)> {
        let mut known = self.lock();
        let Known { certificates, stapling, given_up, .. } = &mut *known;
        for (name, error) in stapling.follow(certificates.values().map(|watched| &watched.current), given_up) {
            log::warn!("certificate {name}: no OCSP response can be fetched: {error}");
        }
        stapling.due(now())
    }

    /// Takes what a responder said. A good answer goes with the next look, and stays while it holds, whatever comes after.
    pub fn staple(&self, name: &Name, question: &Arc<Question>, answer: Result<&[u8], NoStaple>) {
        let mut known = self.lock();
        let Known { certificates, stapling, .. } = &mut *known;
        let chance = (now(), rand::random());
        let Some((pause, result)) = stapling.answered((name, question), answer, chance, self.algorithms) else {
            return;
        };
        if let Some(watched) = certificates.get_mut(name) {
            watched.current = stapling.filled(&watched.current);
        }
        match result {
            Ok(()) => {
                self.metrics.ocsp_fetches.increment();
                log::info!("certificate {name}: has an OCSP response of {}, the next in {pause} s", question.url);
            }
            Err(error) => {
                self.metrics.ocsp_fetch_failures.increment();
                let (what, why) = (format!("{name}: {}, again in {pause} s", question.url), error.to_string());
                let news = News { who: "OCSP".to_owned(), what, why, ..News::default() };
                self.events.tell("certificate.ocsp_failed", news);
            }
        }
    }

    fn reloaded(&self, name: &str) {
        self.metrics.certificate_reloads.increment();
        self.tell("certificate.reloaded", name.to_owned(), String::new());
    }

    fn failed<T>(&self, watched: &mut Watched<T>, name: String, why: &RenewalError, settled: Settled) {
        watched.trouble = Some(name.clone());
        let more = if why.is_passing() { "; it is read again each second" } else { "" };
        match settled {
            // It was said.
            Settled::Again if why.is_passing() => return,
            // A key that only root may read is like that once `user:` holds.
            Settled::AsBefore if !why.is_passing() => {
                log::warn!("certificate {name} cannot be read again, and so will not be renewed by itself: {why}");
                return;
            }
            _ => {}
        }
        self.metrics.certificate_reload_failures.increment();
        log::error!("certificate {name} stays as it was: {why}{more}");
        self.tell("certificate.failed", format!("{name}: stays as it was"), format!("{why}{more}"));
    }

    /// What a start would warn of.
    fn remark(&self, name: &str, remark: &str) {
        log::warn!("{name}: {remark}");
    }

    fn tell(&self, kind: &'static str, what: String, why: String) {
        self.events.tell(kind, News { who: "file change".to_owned(), what, why, ..News::default() });
    }

    fn handle(&self, certificate: &Certificate) -> Arc<CertificateMetrics> {
        self.metrics.certificate(&certificate.name, certificate.ocsp.is_some() || certificate.ocsp_fetch)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of files that could not be taken, and now hold what is served. That they hold something new is said by itself.
fn all_clear<T>(watched: &mut Watched<T>, fresh: &[String]) {
    if let Some(name) = watched.trouble.take().filter(|name| !fresh.contains(name)) {
        log::info!("certificate {name}: its files are good again, and hold what is served");
    }
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// Whether both would be served alike.
pub fn same(one: &Certificate, other: &Certificate) -> bool {
    one.key.cert == other.key.cert
        && one.key_der.secret_der() == other.key_der.secret_der()
        && one.ocsp == other.ocsp
        && one.ocsp_fetch == other.ocsp_fetch
}

/// Whether both judge clients alike, by the same files.
pub fn same_clients(one: Option<&ClientAuth>, other: Option<&ClientAuth>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return one.is_none() && other.is_none() };
    let lists = |clients: &ClientAuth| clients.crl.as_ref().map(|crl| (crl.path.clone(), crl.lists.clone()));
    one.mode == other.mode
        && one.ca.path == other.ca.path
        && one.ca.certificates == other.ca.certificates
        && lists(one) == lists(other)
}

/// Names of the one that the other is not for.
fn lost_names<'a>(old: &'a Certificate, new: &'a Certificate) -> impl Iterator<Item = &'a str> {
    old.names.iter().filter(|name| !new.names.contains(name)).map(String::as_str)
}

/// Whether a listener refuses a name now that one of its certificates is this one.
fn refuses(tls: &Tls, new: &Certificate, name: &str) -> bool {
    let serving = tls.serving();
    let ListenerTls { certificates, strict_sni, .. } = &serving.model;
    let others = certificates.iter().filter(|used| used.name != new.name).map(|used| &**used);
    *strict_sni
        && certificates.iter().any(|used| used.name == new.name)
        && !others.chain([new]).any(|certificate| is_for(certificate, name))
}

/// By the name itself, or a wildcard in place of its first label.
fn is_for(certificate: &Certificate, name: &str) -> bool {
    let parent = name.find('.').and_then(|dot| name.get(dot..)).filter(|_| !name.starts_with('*'));
    certificate.names.iter().any(|held| held == name || held.strip_prefix('*').is_some_and(|held| Some(held) == parent))
}

fn client_files(clients: &ClientAuth) -> (&PathBuf, Option<&PathBuf>) {
    (&clients.ca.path, clients.crl.as_ref().map(|crl| &crl.path))
}

fn same_files(one: &Certificate, other: &Certificate) -> bool {
    let files = |of: &Certificate| {
        let ocsp = of.ocsp.as_ref().and_then(|ocsp| ocsp.path.clone());
        (of.cert_path.clone(), of.key_path.clone(), ocsp, of.ocsp_fetch)
    };
    files(one) == files(other)
}
