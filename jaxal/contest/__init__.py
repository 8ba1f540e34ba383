"""The benchmark: strategies of choosing labels against each other, over tasks and seeds (`jaxal contest`)."""
