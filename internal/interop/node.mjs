// The peers that are libraries of node. The argument says which one dials.
//
// Each line on stdin is a command, each line on stdout the answer to one, in
// order: {"value": …} or {"error": "…"}. The end of stdin ends everything.
import {createServer as plain} from 'node:http';
import {createServer as secure} from 'node:https';
import {readFileSync} from 'node:fs';
import {createInterface} from 'node:readline';
import {WebSocket as Undici} from 'undici';
import WebSocket, {WebSocketServer} from 'ws';
import {follow} from './peer.mjs';

// Most messages are small, some are larger than ws takes by default.
const maxPayload = 64 << 20;

const dialled = {
	ws: (url, protocols) => new WebSocket(url, protocols, {maxPayload}),
	undici: (url, protocols) => new Undici(url, protocols),
}[process.argv[2]];

let accepted; // the report of the connection that the last listener got

const ops = {
	dial: ({url, protocols, steps}) => follow(dialled(url, protocols), steps),
	async listen({protocols, steps, tls}) {
		const server = tls
			? secure({key: readFileSync(process.env.PEERWS_KEY), cert: readFileSync(process.env.PEERWS_CERT)})
			: plain();
		const sockets = new WebSocketServer({
			server,
			maxPayload,
			perMessageDeflate: {threshold: 0}, // if it is offered
			handleProtocols: offered => protocols.find(p => offered.has(p)) ?? false,
		});
		accepted = new Promise(resolve => sockets.on('connection', ws => {
			sockets.close();
			server.close();
			resolve(follow(ws, steps));
		}));
		await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
		return server.address().port;
	},
	accepted: () => accepted,
};

for await (const line of createInterface({input: process.stdin})) {
	let answer;
	try {
		const command = JSON.parse(line);
		answer = {value: await ops[command.op](command)};
	} catch (e) {
		answer = {error: String(e.stack)};
	}
	console.log(JSON.stringify(answer));
}
process.exit();
