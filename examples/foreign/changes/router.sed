/let traced/,/ServiceBuilder/ s/ServiceBuilder::new()/&.layer(tower_capacity::CapacityLayer::adaptive())/
