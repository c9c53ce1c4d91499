"""Rules about many processes that train one model: replicas that part, ranks that are slow, late or gone."""
