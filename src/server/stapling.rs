//! OCSP responses between those who fetch them and those who send them along.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    listener::certificates::{Certificates, NoStaple},
    policy::ocsp::Question,
    service::ocsp::Stapler,
    types::Name,
};

impl Stapler for Certificates {
    fn due(&self) -> Vec<(Name, Arc<Question>)> {
        self.questions()
    }

    fn answered(&self, name: &Name, question: &Arc<Question>, answer: Result<Bytes, String>) {
        self.staple(name, question, answer.as_deref().map_err(|error| NoStaple::NotAsked(error.clone())));
    }
}
