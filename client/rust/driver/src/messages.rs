//! Messages of the contract in protobuf's JSON form.

use std::{fs, path::Path};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;

use crate::Result;

pub struct Messages(DescriptorPool);

impl Messages {
    /// Of the contract as it is in this checkout.
    pub fn new() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let mut compiler = protox::Compiler::new([root.join("proto"), root.join("third_party")])?;
        for entry in fs::read_dir(root.join("proto/actserve/v1"))? {
            compiler.open_file(entry?.path())?;
        }
        Ok(Self(compiler.descriptor_pool()))
    }

    pub fn message_of<M: Message + Default>(&self, name: &str, json: &Value) -> Result<M> {
        if json.is_null() {
            return Ok(M::default());
        }
        let dynamic = DynamicMessage::deserialize(self.of(name)?, json)?;
        Ok(M::decode(&*dynamic.encode_to_vec())?)
    }

    pub fn json_of(&self, name: &str, message: &impl Message) -> Result<Value> {
        Ok(serde_json::to_value(self.dynamic(name, message)?)?)
    }

    /// The name of the event that a response holds; `unknown` if the client has not read it.
    pub fn event(&self, name: &str, response: &impl Message) -> Result<String> {
        let mut message = self.dynamic(name, response)?;
        loop {
            let Some((field, value)) = message.fields().next() else {
                return Ok("unknown".into());
            };
            // Explanations have their events in a message of their own.
            if field.name() != "event" {
                return Ok(field.name().into());
            }
            let inner = value.as_message().ok_or("an event is no message")?.clone();
            message = inner;
        }
    }

    fn dynamic(&self, name: &str, message: &impl Message) -> Result<DynamicMessage> {
        Ok(DynamicMessage::decode(self.of(name)?, &*message.encode_to_vec())?)
    }

    fn of(&self, name: &str) -> Result<MessageDescriptor> {
        let found = self.0.get_message_by_name(&format!("actserve.v1.{name}"));
        Ok(found.ok_or_else(|| format!("the contract has no {name}"))?)
    }
}
