// node's package ws, for the benchmark.
const args = process.argv.slice(2);
const value = (name) => (args.includes(name) ? args[args.indexOf(name) + 1] : undefined);
const { WebSocketServer } = require(value('-modules') + '/ws');
const { readFileSync } = require('fs');
const everybody = args.includes('-broadcast');

const server = value('-cert')
	? require('https').createServer({ cert: readFileSync(value('-cert')), key: readFileSync(value('-key')) })
	: require('http').createServer();
const sockets = new WebSocketServer({ server, perMessageDeflate: args.includes('-pack') && { serverNoContextTakeover: true, clientNoContextTakeover: true }, maxPayload: 2 << 20 });
sockets.on('connection', (ws) => {
	ws.on('error', () => {});
	ws.on('message', (data, binary) => {
		if (!everybody) return ws.send(data, { binary });
		for (const to of sockets.clients) to.send(data, { binary });
	});
});
server.listen(0, '127.0.0.1', 4096, () => console.log(server.address().port));
process.stdin.on('data', (chunk) => {
	for (const line of String(chunk).trim().split('\n')) {
		if (line === 'gc' && global.gc) global.gc();
		console.log('{"Unsupported":true}');
	}
});
process.stdin.on('end', () => process.exit());
